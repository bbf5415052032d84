"""The one exception tree, and what each exception means on gRPC and REST.

    QuireError                        INTERNAL             500  server_error
    ├── InvalidRequestError           INVALID_ARGUMENT     400  invalid_request_error
    │   ├── ContextLengthError        INVALID_ARGUMENT     400  code context_length_exceeded
    │   ├── BodyTooLargeError         INVALID_ARGUMENT     413  code body_too_large
    │   └── MediaTypeError            INVALID_ARGUMENT     415  code unsupported_media_type
    ├── AuthenticationError           UNAUTHENTICATED      401  code invalid_api_key
    ├── PermissionDeniedError         PERMISSION_DENIED    403  code permission_denied
    ├── ModelNotFoundError            NOT_FOUND            404  code model_not_found
    ├── DuplicateRequestError         ALREADY_EXISTS       409  code duplicate_request_id
    ├── RequestAbortedError           CANCELLED            499  code request_aborted
    ├── DeadlineError                 DEADLINE_EXCEEDED    504  code deadline_exceeded
    ├── OverloadedError               RESOURCE_EXHAUSTED   429  code rate_limit_exceeded
    ├── ServiceUnavailableError       UNAVAILABLE          503  code service_unavailable
    │   └── UnreachedError            UNAVAILABLE          503  code unreached
    ├── RingError                     INTERNAL             never served: between scheduler and executor
    └── StartupError                  FAILED_PRECONDITION  never served: the process refuses to start
        ├── CheckpointError                                the model's files
        └── KvPoolError                                    the KV pool does not fit or is damaged

`quire.rpc` turns these into google.rpc.Status and back; the gateway turns them into OpenAI's error object.
"""

from __future__ import annotations

from typing import ClassVar


class QuireError(Exception):
    """Base of all errors of Quire; served as it is, it means a defect of the server."""

    grpc_code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    # Seconds after which the same request may succeed; None if it will not, or nobody knows.
    retry_after: int | None = None

    def __init__(self, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        """`field` names the request field, flag or limit that is at fault; `retry_after` is better than the class's."""
        super().__init__(message)
        self.message = message
        self.field = field
        # Whether the line of a request in the log tells of it already.
        self.is_logged = False
        if retry_after is not None:
            self.retry_after = retry_after


class InvalidRequestError(QuireError):
    """The request can never succeed as it is."""

    grpc_code = "INVALID_ARGUMENT"
    http_status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    """Prompt and output do not fit the model's context or the KV pool."""

    code = "context_length_exceeded"


class BodyTooLargeError(InvalidRequestError):
    """The body of a REST request is larger than the server reads."""

    http_status = 413
    code = "body_too_large"


class MediaTypeError(InvalidRequestError):
    """The body of a REST request is said to be something else than JSON."""

    http_status = 415
    code = "unsupported_media_type"


class AuthenticationError(QuireError):
    """The request carries none of the server's API keys."""

    grpc_code = "UNAUTHENTICATED"
    http_status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDeniedError(QuireError):
    """The caller is known and may not do this."""

    grpc_code = "PERMISSION_DENIED"
    http_status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class ModelNotFoundError(QuireError):
    """The request names a model that is not served."""

    grpc_code = "NOT_FOUND"
    http_status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class DuplicateRequestError(QuireError):
    """A different request already uses this request id."""

    grpc_code = "ALREADY_EXISTS"
    http_status = 409
    type = "invalid_request_error"
    code = "duplicate_request_id"


class RequestAbortedError(QuireError):
    """The request was cancelled before it finished."""

    grpc_code = "CANCELLED"
    http_status = 499
    code = "request_aborted"


class DeadlineError(QuireError):
    """The caller's deadline passed."""

    grpc_code = "DEADLINE_EXCEEDED"
    http_status = 504
    code = "deadline_exceeded"


class OverloadedError(QuireError):
    """The server has as many requests as it may have; the same request may succeed soon."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after = 1


class ServiceUnavailableError(QuireError):
    """The server cannot take requests now; the same request may succeed later."""

    grpc_code = "UNAVAILABLE"
    http_status = 503
    code = "service_unavailable"
    retry_after = 1


class UnreachedError(ServiceUnavailableError):
    """A process of ours is not there, or does not know the caller: it may have been started anew meanwhile."""

    code = "unreached"


class RingError(QuireError):
    """The shared memory for steps is damaged, or one side does not keep to its protocol."""

    code = "ring_invalid"


class StartupError(QuireError):
    """A process cannot start; `message` says what to change."""

    grpc_code = "FAILED_PRECONDITION"
    code = "startup_failed"


class CheckpointError(StartupError):
    """A model's file is missing, damaged or of an unsupported kind; the message names the file."""

    code = "checkpoint_invalid"


class KvPoolError(StartupError):
    """The KV pool does not fit, or is not what its header says."""

    code = "kv_pool_invalid"


def all_errors() -> list[type[QuireError]]:
    """Every class of the tree, most derived first."""

    def descend(cls: type[QuireError]) -> list[type[QuireError]]:
        return [found for child in cls.__subclasses__() for found in descend(child)] + [cls]

    return descend(QuireError)
