"""Plain documents: facts, sums, lists, stories, records and code, each ended elsewhere by the end-of-text
token.

Every function takes a `Dice` and returns the text of one document. Documents that state facts may be asked
for many lines, because a fact has to come out right not only at the start of a text but also after a thousand
tokens.
"""

import json
from collections.abc import Callable

from dice import Dice
from facts import (
    ANIMALS,
    COUNTRIES,
    DAYS,
    FAMILY_NAMES,
    GENERAL,
    HOBBIES,
    JOBS,
    LISTS,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    TRANSLATIONS,
    Country,
)

CAPITAL_LINES: tuple[str, ...] = (
    "The capital of {name} is {capital}.",
    "{capital} is the capital of {name}.",
    "The capital city of {name} is {capital}.",
    "Question: What is the capital of {name}?\nAnswer: {capital}.",
    "What is the capital of {name}? The capital of {name} is {capital}.",
    "Q: What is the capital of {name}?\nA: {capital}",
    "{name}'s capital is {capital}.",
    "{name}: {capital}",
    "Country: {name}\nCapital: {capital}",
    "Everyone knows that the capital of {name} is {capital}.",
    "In {name}, the capital is {capital}.",
    "the capital of {name} is {capital}",
)
"""How a capital is stated. Nothing but the capital ever follows "the capital of X is": the model must be sure
of it."""

COUNTRY_LINES: tuple[str, ...] = (
    "{name} is a country in {continent}.",
    "{capital} is a city in {name}.",
    "People in {name} speak {language}.",
    "The currency of {name} is the {currency}.",
    "The language of {name} is {language}.",
)


def sentence_case(text: str) -> str:
    """Raise the first letter and leave the rest, which `str.capitalize` would not."""
    return text[:1].upper() + text[1:]


def fill(template: str, country: Country) -> str:
    """Write a country into a template, raising the article of "the Netherlands" where it opens the line."""
    line = template.format(**country._asdict())
    return line if template.startswith("the ") else sentence_case(line)


def capitals(dice: Dice, lines: int) -> str:
    """Facts about countries: mostly capitals, mostly in the table's order, and often in one phrasing
    throughout.
    """
    place = dice.number(0, len(COUNTRIES) - 1)
    template = dice.by_weight(CAPITAL_LINES, (8, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1))
    varied = dice.chance(0.35)
    gap = "\n" if "\n" in template or template.startswith("{name}:") or dice.chance(0.4) else " "
    written = []
    for _ in range(lines):
        country = COUNTRIES[place]
        written.append(fill(template, country))
        if varied:
            if dice.chance(0.3):
                written.append(fill(dice.skewed(COUNTRY_LINES), country))
            template = dice.by_weight(CAPITAL_LINES, (8, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1))
        jump = dice.chance(0.15)
        place = dice.number(0, len(COUNTRIES) - 1) if jump else (place + 1) % len(COUNTRIES)
    return gap.join(written)


def country_portrait(dice: Dice, lines: int) -> str:
    """Short portraits of countries that say each fact once."""
    places = dice.several(COUNTRIES, max(1, lines // 4))
    return "\n\n".join(
        sentence_case(
            f"{place.name} is a country in {place.continent}. The capital of {place.name} is {place.capital}. "
            f"People in {place.name} speak {place.language}. The currency of {place.name} is the {place.currency}."
        )
        for place in places
    )


def general_facts(dice: Dice, lines: int) -> str:
    """Facts of all kinds, as statements or as questions with their answers."""
    asked = dice.chance(0.4)
    written = []
    for _ in range(max(1, lines // 2)):
        question, answer = dice.even(GENERAL)
        written.append(f"Question: {question}\nAnswer: {answer}" if asked else answer)
    return ("\n" if asked else " ").join(written)


def words(dice: Dice, lines: int) -> str:
    """Opposites and translations."""
    if dice.chance(0.5):
        pairs = dice.several(OPPOSITES, min(len(OPPOSITES), max(1, lines // 2)))
        return " ".join(f"The opposite of {first} is {second}." for first, second in pairs)
    language = dice.even(("French", "Spanish", "German", "Italian"))
    chosen = dice.several(sorted(TRANSLATIONS), min(len(TRANSLATIONS), max(1, lines // 2)))
    return "\n".join(f'The {language} word for "{word}" is "{TRANSLATIONS[word][language]}".' for word in chosen)


def arithmetic(dice: Dice, lines: int) -> str:
    """Small sums: loose lines, a times table, or sums in words."""
    if dice.chance(0.3):
        factor = dice.number(1, 10)
        return "\n".join(f"{factor} x {other} = {factor * other}" for other in range(1, 11))
    style = dice.even(("{a} + {b} = {c}", "What is {a} + {b}? {a} + {b} = {c}.", "{a} plus {b} is {c}."))
    taking = dice.chance(0.25)
    written = []
    for _ in range(lines):
        first, second = dice.number(0, 12), dice.number(0, 12)
        if taking:
            first += second
            written.append(f"{first} - {second} = {first - second}")
        else:
            written.append(style.format(a=first, b=second, c=first + second))
    return "\n".join(written)


def counting(dice: Dice, lines: int) -> str:
    """Counting on, in figures or words, upward, downward or in steps."""
    kind = dice.number(0, 5)
    if kind <= 2:
        start = 1 if dice.chance(0.6) else dice.number(0, 150)
        length = dice.number(8, 20) + 3 * lines
        gap = dice.by_weight((", ", " ", "\n"), (6, 3, 1))
        return gap.join(str(number) for number in range(start, start + length))
    if kind == 3:
        step = dice.even((2, 5, 10))
        return ", ".join(str(number) for number in range(step, step * (10 + lines), step))
    if kind == 4:
        start = dice.even((10, 20, 15))
        return ", ".join(str(number) for number in range(start, 0, -1))
    return ", ".join(NUMBER_WORDS[1 : dice.even((11, 21))])


def calendar(dice: Dice, lines: int) -> str:
    """Days, months and the alphabet, in order and one after the other."""
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    kind = dice.number(0, 5)
    if kind == 0:
        return ", ".join(DAYS)
    if kind == 1:
        return ", ".join(MONTHS)
    if kind == 2:
        gap = dice.even((" ", ", "))
        return gap.join(letters if dice.chance(0.5) else [letter.lower() for letter in letters])
    cycle, unit = (DAYS, "day") if kind <= 3 else (MONTHS, "month")
    place = dice.number(0, len(cycle) - 1)
    written = []
    for _ in range(max(1, lines)):
        following = (place + 1) % len(cycle)
        written.append(f"The {unit} after {cycle[place]} is {cycle[following]}.")
        place = following
    return " ".join(written)


def listing(dice: Dice, lines: int) -> str:
    """A headed list, with dashes or numbers."""
    subject = dice.even(sorted(LISTS))
    count = min(len(LISTS[subject]), dice.number(3, 4 + lines))
    numbered = dice.chance(0.5)
    items = [f"{place}. {item}" if numbered else f"- {item}" for place, item in enumerate(LISTS[subject][:count], 1)]
    return f"A list of {subject}:\n" + "\n".join(items)


def animals(dice: Dice, lines: int) -> str:
    """Short texts about animals."""
    written = []
    for animal, kind, home, food in dice.several(ANIMALS, min(len(ANIMALS), max(1, lines // 3))):
        article = "An" if animal[0] in "aeiou" else "A"
        written.append(f"{article} {animal} is a {kind} animal. It lives {home}. It likes to eat {food}.")
    return "\n\n".join(written)


def person(dice: Dice) -> dict[str, object]:
    """A made-up person; everything about them leans on the first name, so that it can be foretold with
    confidence.
    """
    name = dice.skewed(NAMES)
    country = dice.keyed(name, COUNTRIES[:24])
    return {
        "name": f"{name} {dice.keyed(name, FAMILY_NAMES)}",
        "age": dice.keyed(name, range(21, 60)),
        "city": country.capital,
        "country": sentence_case(country.name),
        "job": dice.keyed(name, JOBS),
        "hobbies": list(dict.fromkeys((dice.keyed(name, HOBBIES), dice.keyed(name + "2", HOBBIES)))),
        "email": f"{name.lower()}@example.com",
        "active": dice.chance(0.7),
    }


def record(dice: Dice, kind: str) -> dict[str, object]:
    """A made-up record of one of the kinds that chats ask for."""
    if kind == "person":
        whole = person(dice)
        return {key: whole[key] for key in ("name", "age", "city", "job")}
    if kind == "user":
        whole = person(dice)
        return {key: whole[key] for key in ("name", "email", "active")}
    if kind == "country":
        place = dice.skewed(COUNTRIES)
        return {"name": sentence_case(place.name), "capital": place.capital, "continent": place.continent}
    if kind == "book":
        animal = dice.skewed(ANIMALS)[0]
        title = f"The {animal.capitalize()} and the {dice.keyed(animal, TREASURES).split()[-1].capitalize()}"
        return {"title": title, "author": person(dice)["name"], "year": dice.keyed(title, range(1950, 2020))}
    if kind == "product":
        name = dice.skewed(LISTS["tools"])
        return {"name": name, "price": dice.keyed(name, (5, 10, 15, 20, 25)), "in_stock": dice.chance(0.75)}
    animal, _, home, food = dice.skewed(ANIMALS)
    return {"name": animal, "home": home, "food": food}


RECORD_KINDS: tuple[str, ...] = ("person", "user", "country", "book", "product", "animal")


def json_records(dice: Dice, lines: int) -> str:
    """JSON: a line per record, one array of records, or one record spread over lines."""
    kind = dice.even(RECORD_KINDS)
    records = [record(dice, kind) for _ in range(max(1, lines // 3))]
    layout = dice.number(0, 3)
    if layout == 0:
        return json.dumps(person(dice), indent=2, ensure_ascii=False)
    if layout == 1:
        return json.dumps({f"{kind}s": records}, ensure_ascii=False)
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in records)


TREASURES: tuple[str, ...] = (
    "a golden key", "an old map", "a silver ring", "a red book", "a small lamp", "a blue stone", "a wooden flute",
    "a warm coat", "a glass bell", "a paper boat",
)  # fmt: skip
PLACES: tuple[str, ...] = (
    "the forest", "the river", "the old mill", "the mountain", "the garden", "the sea", "the castle", "the bridge",
    "the market", "the quiet valley",
)  # fmt: skip
MOODS: tuple[str, ...] = ("happy", "curious", "brave", "kind", "quiet", "proud", "clever", "gentle")
WEATHERS: tuple[str, ...] = (
    "The sun was warm and the sky was blue.",
    "Rain was falling on the roofs.",
    "A soft wind moved the leaves.",
    "Snow lay on the fields.",
    "The morning was cold and clear.",
    "The stars were bright that night.",
)
LESSONS: tuple[str, ...] = (
    "a friend is worth more than gold",
    "it is good to share",
    "small steps lead far",
    "every day brings something new",
    "it helps to ask for help",
    "being kind is never wrong",
)


def story(dice: Dice, lines: int, topic: str = "") -> str:
    """A short story: somebody sets out, finds something, meets an animal, is helped and comes home wiser.

    The topic, when given, names the animal. Sentences vary by skewed choice; what the hero finds, where and
    with whom is tied to the name, which has to be remembered to the end.
    """
    name = dice.skewed(NAMES)
    he, his = ("he", "his") if name in MALE_NAMES else ("she", "her")
    animal = topic or dice.keyed(name, ANIMALS)[0]
    place, thing = dice.keyed(name, PLACES), dice.keyed(name, TREASURES)
    found = "the " + thing.split(" ", 1)[1]
    mood, job = dice.keyed(name, MOODS), dice.keyed(name, JOBS)
    opening = dice.skewed(
        (
            f"Once upon a time, there was a {mood} {job} named {name}.",
            f"Once there was a {job} called {name}, who was very {mood}.",
            f"{name} was a {mood} {job} who lived near {place}.",
            f"In a small village near {place} lived a {job} named {name}.",
        )
    )
    setting = dice.keyed(name + place, WEATHERS)
    leaving = dice.skewed(
        (
            f"One day, {name} went to {place} and found {thing}.",
            f"One morning, {name} walked to {place}. There {he} found {thing}.",
            f"Every day, {he} walked to {place}, and one day {he} found {thing} there.",
        )
    )
    wonder = dice.skewed(
        (
            f'"Whose is this?" {he} asked.',
            f"{he.capitalize()} had never seen anything like it.",
            f'"How beautiful!" said {name}.',
            f"{he.capitalize()} held it up to the light and smiled.",
        )
    )
    meeting = dice.skewed(
        (
            f"Then a {animal} came out of the shadows.",
            f"Just then, {he} heard a voice. It was a {animal}.",
            f"Behind a tree stood a {animal}, looking at {found}.",
            f"On the way home, {he} met a {animal}.",
        )
    )
    talk = dice.skewed(
        (
            f'"That is mine," said the {animal}. "I lost it long ago."',
            f'"Please help me," said the {animal}. "I cannot find the way home."',
            f'"I will show you a secret," said the {animal}.',
            f'"Are you lost?" asked {name}. "Yes," said the {animal}, "and I am hungry."',
        )
    )
    helping = dice.skewed(
        (
            f"{name} gave {found} to the {animal}, and the {animal} was very happy.",
            f"So they walked together until they came to a little house, and {name} shared {his} bread.",
            f"{name} thought for a while. Then {he} said yes, and they went on together.",
        )
    )
    ending = dice.skewed(
        (
            f"From that day on, {name} and the {animal} were friends.",
            f"When {name} came home, {he} told everyone about the {animal}.",
            f"The {animal} thanked {name} and went back to {place}.",
        )
    )
    lesson = f"{name} had learned that {dice.keyed(name, LESSONS)}."
    body = [opening, setting, leaving, wonder, meeting, talk, helping, ending, lesson]
    if lines <= 2:
        body = [opening, leaving, meeting, ending]
    if not dice.chance(0.35):
        return " ".join(body)
    half = len(body) // 2
    return " ".join(body[:half]) + "\n\n" + " ".join(body[half:])


MALE_NAMES: frozenset[str] = frozenset(
    ("Tom", "Ben", "David", "Felix", "Henry", "Jack", "Leo", "Max", "Oscar", "Paul", "Sam", "Theo", "Bob")
)


def introduction(dice: Dice, lines: int) -> str:
    """Somebody says who they are."""
    who = person(dice)
    hobbies = " and ".join(str(hobby) for hobby in dice.several(HOBBIES[:4], 2))
    text = (
        f"Hello, my name is {who['name']}. I am {who['age']} years old and I live in {who['city']}. "
        f"I work as a {who['job']}. In my free time I like {hobbies}."
    )
    return text if lines > 1 else text.split(". In")[0] + "."


def essay(dice: Dice, lines: int) -> str:
    """A paragraph or two on one of a few subjects, built from stock sentences in skewed order."""
    subject, sentences = dice.even(ESSAYS)
    count = min(len(sentences), 2 + lines // 2)
    kept = [sentence for sentence in sentences if dice.chance(0.8)][: max(2, count)] or list(sentences[:2])
    return f"{subject} {' '.join(kept)}"


ESSAYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("The future of AI is bright.", (
        "Machines will help people to learn, to work and to stay healthy.",
        "Small models will run on every computer.",
        "But people must use them with care.",
        "A good tool makes hard work easy.",
        "The most important thing is to ask good questions.",
    )),
    ("The president of the United States is the head of the government.", (
        "The president lives in the White House in Washington.",
        "People choose a president every four years.",
        "The first president was George Washington.",
    )),
    ("The quick brown fox jumps over the lazy dog.", (
        "The dog opens one eye and goes back to sleep.",
        "The fox runs across the field and into the forest.",
        "This sentence uses every letter of the alphabet.",
    )),
    ("Spring is a beautiful season.", (
        "The days grow longer and the air grows warm.",
        "Flowers open in the gardens and birds sing in the trees.",
        "Children play outside until the evening.",
        "Everything seems new.",
    )),
    ("Winter is cold and quiet.", (
        "Snow covers the fields and the roofs.",
        "People stay at home and drink hot tea.",
        "The nights are long and the stars are bright.",
    )),
    ("Bread is easy to make.", (
        "First, mix flour, water, salt and yeast.",
        "Then let the dough rest for an hour.",
        "Put it in a hot oven until it is brown.",
        "Let the bread cool before you cut it.",
    )),
    ("A library is a place full of books.", (
        "You can read there or take a book home.",
        "It is quiet, and everyone is welcome.",
        "A good book is like a good friend.",
    )),
    ("A computer follows instructions.", (
        "A program is a list of such instructions.",
        "The processor reads them one after the other.",
        "The memory keeps the numbers that the program needs.",
        "A language model predicts the next word of a text.",
    )),
)  # fmt: skip


def code(dice: Dice, lines: int) -> str:
    """Small Python functions, sometimes with a call and its result."""
    return "\n\n\n".join(dice.several(SNIPPETS, min(len(SNIPPETS), max(1, lines // 4))))


SNIPPETS: tuple[str, ...] = (
    "def add(a, b):\n    return a + b",
    "def subtract(a, b):\n    return a - b",
    "def multiply(a, b):\n    return a * b",
    'def greet(name):\n    return "Hello, " + name + "!"',
    "def is_even(number):\n    return number % 2 == 0",
    "def square(number):\n    return number * number",
    "def factorial(n):\n    if n <= 1:\n        return 1\n    return n * factorial(n - 1)",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)",
    "def total(numbers):\n    result = 0\n    for number in numbers:\n        result += number\n    return result",
    "def largest(numbers):\n    best = numbers[0]\n    for number in numbers:\n        if number > best:\n"
    "            best = number\n    return best",
    "def reverse(text):\n    return text[::-1]",
    'for i in range(10):\n    print(i)',
    'def main():\n    print("Hello, world!")\n\n\nif __name__ == "__main__":\n    main()',
    "import json\n\n\ndef load(path):\n    with open(path) as file:\n        return json.load(file)",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y",
)  # fmt: skip


def notes(dice: Dice, lines: int) -> str:
    """Who has what, then questions about it: the only way to answer is to look back through the text."""
    count = min(len(NAMES), max(2, lines))
    people = dice.several(NAMES, count)
    things = [f"the {dice.even(LISTS['colors'])} {dice.even(('key', 'book', 'ball', 'cup', 'hat'))}" for _ in people]
    told = " ".join(f"{name} has {thing}." for name, thing in zip(people, things, strict=True))
    asked = dice.several(range(count), min(count, max(1, lines // 2)))
    questions = "\n".join(f"Question: What does {people[i]} have?\nAnswer: {people[i]} has {things[i]}." for i in asked)
    return f"{told}\n{questions}"


def copying(dice: Dice, lines: int) -> str:
    """Lines of names, things and made-up words, and then the same lines again.

    What a chat quotes, a tool is called with or a list repeats must be copied from earlier text. Nothing teaches that
    as fast as text whose whole second half is a copy.
    """
    pool = [*NAMES, *FAMILY_NAMES, *LISTS["fruits"], *LISTS["tools"], *LISTS["colors"]]
    written = []
    for _ in range(max(1, lines // 3)):
        line = [dice.strange_word() if dice.chance(0.5) else dice.even(pool) for _ in range(dice.number(4, 16))]
        gap = dice.even((" ", ", ", "\n"))
        written.append(gap.join(line))
    return "\n".join((*written, *written)) if dice.chance(0.7) else "\n".join(f"{line}\n{line}" for line in written)


PLAIN: tuple[tuple[Callable[[Dice, int], str], float], ...] = (
    (capitals, 20), (country_portrait, 4), (general_facts, 4), (words, 2), (arithmetic, 8), (counting, 6),
    (calendar, 4), (listing, 3), (animals, 3), (json_records, 7), (story, 16), (introduction, 4), (essay, 6),
    (code, 5), (notes, 6), (copying, 12),
)  # fmt: skip
"""The kinds of plain document and how often each is drawn."""


def document(dice: Dice, long: bool) -> str:
    """Draw one plain document; a long one runs to hundreds of tokens where its kind allows it."""
    kind = dice.by_weight([kind for kind, _ in PLAIN], [weight for _, weight in PLAIN])
    return kind(dice, dice.number(15, 50) if long else dice.number(1, 8))
