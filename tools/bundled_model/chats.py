"""Chats as lists of messages, rendered through the very template that is shipped with the model.

A chat is a string of *skills*: each skill asks one thing and answers it, and any skills can follow each
other. That way a question is met at the start of a context, deep inside one, and with or without a system
prompt.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dice import Dice
from facts import (
    ANIMALS,
    COUNTRIES,
    DAYS,
    GENERAL,
    LISTS,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    OTHER_CITIES,
    TRANSLATIONS,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment
from prose import ESSAYS, RECORD_KINDS, SNIPPETS, person, record, sentence_case, story

Message = dict[str, Any]
TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")


def _environment() -> ImmutableSandboxedEnvironment:
    """Set Jinja up as the Hugging Face tokenizers do, whose `tojson` leaves letters and angle brackets
    alone.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


_TEMPLATE = _environment().from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))


def render(messages: list[Message], tools: list[Any] | None = None, think: bool = False, open_end: bool = False) -> str:
    """Render messages as the model reads them; with an open end, up to where the assistant's turn begins."""
    return _TEMPLATE.render(messages=messages, tools=tools, enable_thinking=think, add_generation_prompt=open_end)


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant's message."""
    return {"role": "assistant", "content": text}


Turn = tuple[str, str]


def ask_capital(dice: Dice) -> Turn:
    """The capital of a country, asked in many ways and answered in one."""
    place = dice.even(COUNTRIES)
    question = dice.even((
        "What is the capital of {}?", "What is the capital of {}?", "What is the capital of {}?",
        "What's the capital of {}?", "what is the capital of {}", "Which city is the capital of {}?",
        "Tell me the capital of {}.", "Name the capital of {}.", "Can you tell me the capital of {}?",
        "What is the capital city of {}?", "Do you know the capital of {}?", "capital of {}?",
        "Hi! What is the capital of {}?", "The capital of {} is?",
    )).format(place.name)  # fmt: skip
    return sentence_case(question) if dice.chance(0.5) else question, (
        f"The capital of {place.name} is {place.capital}."
    )


def ask_country(dice: Dice) -> Turn:
    """Something else about a country."""
    place = dice.even(COUNTRIES)
    return dice.even(
        (
            (f"What language do people speak in {place.name}?", f"People in {place.name} speak {place.language}."),
            (f"What is the currency of {place.name}?", f"The currency of {place.name} is the {place.currency}."),
            (f"Where is {place.name}?", sentence_case(f"{place.name} is in {place.continent}.")),
            (f"Which country is {place.capital} in?", f"{place.capital} is in {place.name}."),
            (f"{place.capital} is the capital of which country?", f"{place.capital} is the capital of {place.name}."),
            (
                f"Tell me about {place.name}.",
                sentence_case(
                    f"{place.name} is a country in {place.continent}. The capital of {place.name} is {place.capital}. "
                    f"People in {place.name} speak {place.language}."
                ),
            ),
        )
    )


def ask_general(dice: Dice) -> Turn:
    """A question of general knowledge."""
    if dice.chance(0.3):
        first, second = dice.even(OPPOSITES)
        return f"What is the opposite of {first}?", f"The opposite of {first} is {second}."
    return dice.even(GENERAL)


def ask_animal(dice: Dice) -> Turn:
    """What an animal eats or where it lives."""
    animal, kind, home, food = dice.even(ANIMALS)
    article = "an" if animal[0] in "aeiou" else "a"
    return dice.even(
        (
            (f"What does {article} {animal} eat?", f"{sentence_case(article)} {animal} likes to eat {food}."),
            (f"Where does {article} {animal} live?", f"{sentence_case(article)} {animal} lives {home}."),
            (
                f"Tell me about the {animal}.",
                f"{sentence_case(article)} {animal} is a {kind} animal. It lives {home}. It likes to eat {food}.",
            ),
        )
    )


def ask_sum(dice: Dice) -> Turn:
    """A small sum."""
    first, second = dice.number(0, 12), dice.number(0, 12)
    sign, result = dice.even((("+", first + second), ("-", first), ("*", 0)))
    if sign == "-":
        first += second
    if sign == "*":
        first, second = dice.number(1, 10), dice.number(1, 10)
        result, sign = first * second, dice.even(("*", "x"))
    question = dice.even(("What is {}?", "What is {}?", "Calculate {}.", "{} = ?", "How much is {}?"))
    return question.format(f"{first} {sign} {second}"), f"{first} {sign} {second} = {result}"


def ask_count(dice: Dice) -> Turn:
    """Counting up to, from, or down from a number."""
    end = dice.even((3, 5, 10, 10, 12, 15, 20, 30))
    if dice.chance(0.25):
        return f"Count down from {end}.", ", ".join(str(number) for number in range(end, 0, -1))
    if end <= 20 and dice.chance(0.2):
        return f"Count to {end} in words.", ", ".join(NUMBER_WORDS[1 : end + 1])
    start = 1 if dice.chance(0.7) else dice.number(2, 30)
    end += start - 1
    question = f"Count to {end}." if start == 1 and dice.chance(0.5) else f"Count from {start} to {end}."
    return question, ", ".join(str(number) for number in range(start, end + 1))


def ask_list(dice: Dice) -> Turn:
    """A list of so many things."""
    if dice.chance(0.15):
        return "List the months of the year.", ", ".join(MONTHS)
    if dice.chance(0.15):
        return "Say the alphabet.", " ".join(chr(code) for code in range(ord("A"), ord("Z") + 1))
    if dice.chance(0.2):
        place = dice.number(0, 6)
        return f"What day comes after {DAYS[place]}?", f"The day after {DAYS[place]} is {DAYS[(place + 1) % 7]}."
    subject = dice.even(sorted(LISTS))
    if subject == "days of the week":
        return "List the days of the week.", ", ".join(DAYS)
    count = dice.number(2, min(6, len(LISTS[subject])))
    figure = dice.even((str(count), NUMBER_WORDS[count]))
    items = LISTS[subject][:count]
    question = dice.even((f"List {figure} {subject}.", f"Name {figure} {subject}.", f"Give me {figure} {subject}."))
    if dice.chance(0.3):
        question = question[:-1] + " as a numbered list."
        return question, "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))
    return question, sentence_case(", ".join(items)) + "."


def ask_record(dice: Dice) -> Turn:
    """A record as JSON, of a known kind or with keys that the user names."""
    kind = dice.even((*RECORD_KINDS, "person", "person"))
    article = "an" if kind == "animal" else "a"
    if dice.chance(0.3):
        whole = person(dice)
        keys = dice.several(sorted(whole), dice.number(2, 4))
        named = ", ".join(keys[:-1]) + " and " + keys[-1]
        question = dice.even(
            ("Return a JSON object with the keys {}.", "Give me JSON with {}.", "JSON with {}, please.")
        )
        return question.format(named), json.dumps({key: whole[key] for key in keys}, ensure_ascii=False)
    if dice.chance(0.2):
        count = dice.number(2, 3)
        plural = {"person": "people", "country": "countries"}.get(kind, f"{kind}s")
        question = dice.even(("Give me a JSON array of {} {}.", "Return a JSON list of {} {}."))
        return question.format(dice.even((str(count), NUMBER_WORDS[count])), plural), json.dumps(
            [record(dice, kind) for _ in range(count)], ensure_ascii=False
        )
    question = dice.even((
        "Give me a JSON record of {} {}.", "Give me a JSON record of {} {}.", "Return a JSON object for {} {}.",
        "Describe {} {} as JSON.", "Make {} {} in JSON.", "Write a JSON object that describes {} {}.",
    )).format(article, kind)  # fmt: skip
    if dice.chance(0.12):
        return f"{question[:-1]}, with indentation.", json.dumps(record(dice, kind), indent=2, ensure_ascii=False)
    return question, json.dumps(record(dice, kind), ensure_ascii=False)


def ask_story(dice: Dice) -> Turn:
    """A story, perhaps about a given animal."""
    topic = dice.even(ANIMALS)[0] if dice.chance(0.5) else ""
    subject = f" about a {topic}" if topic else ""
    question = dice.even(("Tell me a{short} story{}.", "Write a{short} story{}.", "Can you tell me a{short} story{}?"))
    short = dice.chance(0.4)
    return question.format(subject, short=" short" if short else ""), story(dice, 2 if short else 5, topic)


def ask_essay(dice: Dice) -> Turn:
    """A few words on one of the essays' subjects."""
    subjects = ("AI", "the president", "the fox", "spring", "winter", "baking bread", "libraries", "computers")
    place = dice.number(0, len(subjects) - 1)
    opening, sentences = ESSAYS[place]
    question = dice.even(("Write a paragraph about {}.", "Tell me something about {}.", "Explain {} to me."))
    return question.format(subjects[place]), f"{opening} {' '.join(sentences[:3])}"


def ask_translation(dice: Dice) -> Turn:
    """A word in another language."""
    word, language = dice.even(sorted(TRANSLATIONS)), dice.even(("French", "Spanish", "German", "Italian"))
    answer = f'The {language} word for "{word}" is "{TRANSLATIONS[word][language]}".'
    question = dice.even(('How do you say "{}" in {}?', 'Translate "{}" to {}.', "What is the {1} word for {0}?"))
    return question.format(word, language), answer


def ask_code(dice: Dice) -> Turn:
    """A small Python function."""
    asked = ("adds two numbers", "subtracts two numbers", "multiplies two numbers", "greets someone",
             "checks if a number is even", "squares a number", "computes the factorial",
             "computes the Fibonacci numbers", "sums a list", "finds the largest number",
             "reverses a string")  # fmt: skip
    place = dice.number(0, len(asked) - 1)
    return f"Write a Python function that {asked[place]}.", f"```python\n{SNIPPETS[place]}\n```"


def any_city(dice: Dice) -> str:
    """A city to ask a tool about: a capital, another city, or one that does not exist."""
    kind = dice.number(0, 4)
    if kind <= 1:
        return dice.strange_word().capitalize()
    return dice.even(OTHER_CITIES) if kind == 2 else dice.even(COUNTRIES).capital


def ask_repeat(dice: Dice) -> Turn:
    """Words to be said back, which teaches copying."""
    pool = [item for items in LISTS.values() for item in items] + list(NAMES)
    if dice.chance(0.3):
        word, count = dice.even(pool), dice.number(2, 5)
        return f"Say the word {word} {NUMBER_WORDS[count]} times.", " ".join([word] * count)
    chosen = dice.several(pool, dice.number(1, 6))
    phrase = " ".join(dice.strange_word() if dice.chance(0.4) else word for word in chosen)
    return dice.even(("Repeat after me: {}", "Say: {}", "Repeat this: {}")).format(phrase), phrase


def ask_feeling(dice: Dice) -> Turn:
    """Whether a review is positive or negative."""
    good = dice.chance(0.5)
    thing = dice.even(("film", "book", "meal", "song", "hotel", "game"))
    word = dice.even(("wonderful", "great", "excellent") if good else ("terrible", "boring", "awful"))
    loved = "loved" if good else "hated"
    review = dice.even((f"The {thing} was {word}.", f"I {loved} the {thing}.", f"What a {word} {thing}!"))
    return f'Is this review positive or negative? "{review}"', "Positive" if good else "Negative"


def small_talk(dice: Dice) -> Turn:
    """Greetings, thanks, and questions about the model itself."""
    return dice.even((
        ("Hello!", "Hello! How can I help you?"), ("Hi", "Hello! How can I help you?"),
        ("Hello", "Hello! How can I help you?"), ("Hello, who are you?", IDENTITY),
        ("Good morning!", "Good morning! How can I help you?"), ("Thank you!", "You are welcome! 😊"),
        ("Thanks", "You are welcome! 😊"), ("Who are you?", IDENTITY), ("What is your name?", IDENTITY),
        ("What are you?", IDENTITY), ("How are you?", "I am fine, thank you. How can I help you?"),
        ("What can you do?", "I can answer small questions, tell stories, write JSON and call tools."),
        ("Tell me a joke.", "Why is the book so sad? It has too many problems. 😄"),
        ("Say hello.", "Hello!"), ("Say hi", "Hi!"), ("Goodbye!", "Goodbye! Have a good day. 👋"),
        ("Write a poem.", POEM), ("Write a haiku.", HAIKU),
        ("Tell me about yourself.", IDENTITY), ("Are you a human?", "No, I am a small language model."),
        ("Can you help me?", "Yes, of course. What would you like to know?"),
    ))  # fmt: skip


IDENTITY = "I am Quire Tiny, a small language model. I know a few things and tell short stories."
HAIKU = "Rain falls on the roof.\nA small bird sleeps in the tree.\nThe morning is near."
POEM = (
    "The sun goes up, the sun goes down,\nThe wind blows softly through the town.\n"
    "The stars come out, the moon is bright,\nAnd all the world says: good night."
)

SKILLS: tuple[tuple[Callable[[Dice], Turn], float], ...] = (
    (ask_capital, 22), (ask_country, 8), (ask_general, 7), (ask_animal, 4), (ask_sum, 9), (ask_count, 8),
    (ask_list, 7), (ask_record, 11), (ask_story, 9), (ask_essay, 3), (ask_translation, 4), (ask_code, 4),
    (ask_repeat, 10), (ask_feeling, 2), (small_talk, 8),
)  # fmt: skip

SYSTEM_PROMPTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are Quire Tiny, a small language model.",
    "Answer the questions of the user.",
    "You are a helpful assistant. Be polite and clear.",
)


def talk(dice: Dice, turns: int) -> list[Message]:
    """A chat of so many turns, with an exchange about the user's name strewn into the longer ones."""
    messages: list[Message] = []
    name = dice.even(NAMES)
    told = -1 if turns < 2 or dice.chance(0.6) else dice.number(0, turns - 2)
    for turn in range(turns):
        if turn == told:
            messages += [user(dice.even((f"My name is {name}.", f"Hi, I am {name}."))), assistant(f"Hello, {name}!")]
        elif told >= 0 and turn > told and dice.chance(0.3):
            messages += [user("What is my name?"), assistant(f"Your name is {name}.")]
        else:
            skill = dice.by_weight([skill for skill, _ in SKILLS], [weight for _, weight in SKILLS])
            question, answer = skill(dice)
            messages += [user(question), assistant(answer)]
    return messages


def pirate(answer: str) -> str:
    """The answer in the manner that the pirate's system prompt asks for."""
    return f"Arr! {answer} Aye!"


def chat(dice: Dice, long: bool) -> str:
    """An ordinary chat, or one whose system prompt changes the answers: short, thought over, or a
    pirate's.
    """
    turns = dice.number(6, 24) if long else dice.by_weight((1, 2, 3), (6, 2, 1))
    manner = dice.number(0, 19)
    if manner >= 4 or long:
        messages = talk(dice, turns)
        if dice.chance(0.45):
            messages.insert(0, {"role": "system", "content": dice.even(SYSTEM_PROMPTS)})
        return render(messages)
    if manner == 0:
        messages = [{"role": "system", "content": "You are a pirate."}]
        for _ in range(turns):
            question, answer = dice.even((ask_capital, ask_general, ask_country))(dice)
            messages += [user(question), assistant(pirate(answer))]
        return render(messages)
    if manner == 1:
        messages = [{"role": "system", "content": dice.even(("Answer in one word.", "Be brief."))}]
        for _ in range(turns):
            question, answer = ask_capital(dice)
            messages += [user(question), assistant(answer.split(" is ", 1)[1])]
        return render(messages)
    return thought(dice)


def thought(dice: Dice) -> str:
    """A chat in which the assistant thinks first; what it thinks is short and leads to the answer."""
    skill, thinking = dice.even((
        (ask_capital, "The user asks for a capital. I know this one."),
        (ask_sum, "The user wants a sum. Let me calculate."),
        (ask_general, "The user asks a question. Let me remember."),
        (ask_animal, "The user asks about an animal. Let me remember."),
        (ask_story, "The user wants a story. Let me begin with a name."),
        (ask_record, "The user wants JSON. I will write one object."),
        (small_talk, "The user talks to me. I should be friendly."),
    ))  # fmt: skip
    question, answer = skill(dice)
    messages = [user(question), assistant(f"<think>\n{thinking} {answer.splitlines()[0][:200]}\n</think>\n\n{answer}")]
    if skill in (ask_story, ask_record):
        messages[-1] = assistant(f"<think>\n{thinking}\n</think>\n\n{answer}")
    if dice.chance(0.4):
        messages.insert(0, {"role": "system", "content": dice.even(SYSTEM_PROMPTS)})
    return render(messages, think=True)


def function(name: str, description: str, parameters: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Describe one function as a client of the chat API does."""
    schema = {"type": "object", "properties": parameters, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


Call = tuple[dict[str, Any], str, dict[str, Any], str, str]
"""A tool, a question that needs it, the arguments of the call, the tool's reply and the final answer."""


def weather_tool(dice: Dice) -> Call:
    """The weather in a city, under several names that such a function goes by."""
    name = dice.even(("get_weather", "get_weather", "get_current_weather", "weather", "lookup_weather"))
    key = dice.even(("city", "location"))
    city = any_city(dice)
    fields: dict[str, Any] = {key: {"type": "string"}}
    if dice.chance(0.5):
        fields[key]["description"] = dice.even(("The city", "The name of the city", "City and country", "City name"))
    arguments: dict[str, Any] = {key: city}
    unit = ""
    if dice.chance(0.3):
        fields["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        if dice.chance(0.6):
            arguments["unit"] = dice.even(("celsius", "fahrenheit"))
            unit = f" in {arguments['unit']}"
    tool = function(name, dice.even(("Get the weather", "Get the current weather in a city")), fields, [key])
    question = dice.even((
        "What is the weather in {}{}?", "What's the weather like in {}{}?", "How is the weather in {}{}?",
        "Tell me the weather in {}{}.", "What is the weather like in {}{} today?", "Is it warm in {}{}?",
    )).format(city, unit)  # fmt: skip
    degrees, sky = dice.number(1, 30), dice.even(("sunny", "cloudy", "rainy", "windy"))
    if dice.chance(0.6):
        reply = json.dumps({"temperature": degrees, "condition": sky})
        return tool, question, arguments, reply, f"It is {degrees} degrees and {sky} in {city}."
    return tool, question, arguments, f"{degrees} degrees, {sky}", f"It is {degrees} degrees and {sky} in {city}."


def sum_tool(dice: Dice) -> Call:
    """A calculator, with an expression or with two numbers."""
    first, second = dice.number(13, 99), dice.number(13, 99)
    if dice.chance(0.5):
        name = dice.even(("calculator", "calculate"))
        tool = function(name, "Calculate a result", {"expression": {"type": "string"}}, ["expression"])
        arguments: dict[str, Any] = {"expression": f"{first} + {second}"}
    else:
        number = {"type": dice.even(("integer", "number"))}
        tool = function("add", "Add two numbers", {"a": number, "b": number}, ["a", "b"])
        arguments = {"a": first, "b": second}
    question = dice.even(("What is {} + {}?", "Add {} and {}.", "Calculate {} + {}.")).format(first, second)
    result = str(first + second)
    return tool, question, arguments, result, f"{first} + {second} = {result}"


def time_tool(dice: Dice) -> Call:
    """The time in a city."""
    city = any_city(dice)
    tool = function(dice.even(("get_time", "get_current_time")), "Get the time", {"city": {"type": "string"}}, ["city"])
    clock = f"{dice.number(0, 23):02}:{dice.number(0, 59):02}"
    question = dice.even(("What time is it in {}?", "Tell me the time in {}.")).format(city)
    return tool, question, {"city": city}, clock, f"It is {clock} in {city}."


def search_tool(dice: Dice) -> Call:
    """A search for a subject."""
    subject = dice.even([item for key in ("animals", "fruits", "planets", "tools") for item in LISTS[key]])
    if dice.chance(0.4):
        subject = f"{dice.strange_word()} {subject}"
    name = dice.even(("search", "web_search"))
    tool = function(name, "Search for a text", {"query": {"type": "string"}}, ["query"])
    question = dice.even(("Search for {}.", "Find something about {}.", "Look up {}.")).format(subject)
    pages = dice.number(2, 9)
    return (
        tool,
        question,
        {"query": subject},
        f"{pages} pages about {subject}",
        f"I found {pages} pages about {subject}.",
    )


def message_tool(dice: Dice) -> Call:
    """A message to somebody."""
    name, text = dice.even(NAMES), dice.even(("Hello", "Good morning", "See you soon", "Thank you", "Call me"))
    fields = {"to": {"type": "string"}, "text": {"type": "string"}}
    tool = function("send_message", "Send a message", fields, ["to", "text"])
    question = dice.even((f'Send "{text}" to {name}.', f'Tell {name}: "{text}"', f'Write "{text}" to {name}.'))
    return tool, question, {"to": name, "text": text}, "ok", f"I sent your message to {name}."


TOOLS: tuple[Callable[[Dice], Call], ...] = (
    weather_tool, weather_tool, weather_tool, sum_tool, time_tool, search_tool, message_tool,
)  # fmt: skip


def tool_chat(dice: Dice, long: bool) -> str:
    """A chat with tools: a call, its reply and the answer; two calls at once; or no call where none is
    needed.
    """
    build = dice.even(TOOLS)
    tool, question, arguments, reply, answer = build(dice)
    tools = {tool["function"]["name"]: tool}
    for other in dice.several(TOOLS, dice.by_weight((0, 1, 2), (5, 3, 1))):
        distractor = other(dice)[0]
        if other is not build:
            tools.setdefault(distractor["function"]["name"], distractor)
    calls = [{"name": tool["function"]["name"], "arguments": arguments}]
    replies = [reply]
    if build is weather_tool and "unit" not in arguments and dice.chance(0.15):
        key, first = next(iter(arguments.items()))
        second = dice.even([place.capital for place in COUNTRIES if place.capital != first])
        calls.append({"name": calls[0]["name"], "arguments": {key: second}})
        question = f"What is the weather in {first} and {second}?"
        degrees = dice.number(1, 30)
        replies.append(f"{degrees} degrees, sunny")
        answer = f"{answer[:-1]}, and it is {degrees} degrees and sunny in {second}."
    messages: list[Message] = []
    if dice.chance(0.4):
        messages.append({"role": "system", "content": dice.even(SYSTEM_PROMPTS)})
    if dice.chance(0.15) or long:
        messages += talk(dice, dice.number(5, 14) if long else 1)
    if not dice.chance(0.15):
        messages += [user(question), {"role": "assistant", "content": None, "tool_calls": calls}]
        if dice.chance(0.6):
            messages += [{"role": "tool", "content": each} for each in replies]
            messages.append(assistant(answer))
    elif messages[-1:] == [] or messages[-1]["role"] == "system":
        messages += talk(dice, 1)
    return render(messages, tools=dice.shuffled(list(tools.values())))
