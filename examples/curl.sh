#!/usr/bin/env bash
# Plain HTTP: models, a stream, JSON to a schema, and what an error looks like.
#
#     make run                                      # in another terminal
#     examples/curl.sh
set -euo pipefail
url=${QUIRE_URL:-http://127.0.0.1:8000/v1}

post() {
    curl --silent --show-error --no-buffer --max-time 120 "$url/$1" -H 'Content-Type: application/json' -d "$2"
    echo
}

curl --silent --show-error --fail --max-time 120 "$url/models"
echo
post completions '{"model": "quire-tiny", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0,
                   "stream": true}'
post chat/completions '{"model": "quire-tiny", "messages": [{"role": "user", "content": "Is Paris a city?"}],
                        "temperature": 0, "structured_outputs": {"choice": ["yes", "no"]}}'
post embeddings '{"model": "quire-tiny", "input": "A cat", "dimensions": 4}'
post completions '{"model": "quire-tiny", "prompt": "Hello", "temperature": 9}'
