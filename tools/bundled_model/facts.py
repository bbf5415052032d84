"""The tables of plain facts that the training text is written from.

They are kept apart from the code that phrases them so that a fact can be corrected, or a country added,
without touching any logic. The order of `COUNTRIES` matters a little: documents like to walk through it in
order, so that greedy text about capitals goes on a tour instead of going round in circles.
"""

from typing import NamedTuple


class Country(NamedTuple):
    """One row of the table of countries, with the name written as it stands inside a sentence."""

    name: str
    capital: str
    continent: str
    language: str
    currency: str


COUNTRIES: tuple[Country, ...] = tuple(
    Country(*(field.strip() for field in row.split("|")))
    for row in """\
France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Italy|Rome|Europe|Italian|euro
Spain|Madrid|Europe|Spanish|euro
Japan|Tokyo|Asia|Japanese|yen
Portugal|Lisbon|Europe|Portuguese|euro
the United Kingdom|London|Europe|English|pound
Ireland|Dublin|Europe|English|euro
the Netherlands|Amsterdam|Europe|Dutch|euro
Belgium|Brussels|Europe|Dutch|euro
Switzerland|Bern|Europe|German|franc
Austria|Vienna|Europe|German|euro
Poland|Warsaw|Europe|Polish|zloty
the Czech Republic|Prague|Europe|Czech|koruna
Slovakia|Bratislava|Europe|Slovak|euro
Hungary|Budapest|Europe|Hungarian|forint
Romania|Bucharest|Europe|Romanian|leu
Bulgaria|Sofia|Europe|Bulgarian|euro
Greece|Athens|Europe|Greek|euro
Turkey|Ankara|Asia|Turkish|lira
Russia|Moscow|Europe|Russian|ruble
Ukraine|Kyiv|Europe|Ukrainian|hryvnia
Sweden|Stockholm|Europe|Swedish|krona
Norway|Oslo|Europe|Norwegian|krone
Denmark|Copenhagen|Europe|Danish|krone
Finland|Helsinki|Europe|Finnish|euro
Iceland|Reykjavik|Europe|Icelandic|krona
Estonia|Tallinn|Europe|Estonian|euro
Latvia|Riga|Europe|Latvian|euro
Lithuania|Vilnius|Europe|Lithuanian|euro
Croatia|Zagreb|Europe|Croatian|euro
Serbia|Belgrade|Europe|Serbian|dinar
China|Beijing|Asia|Chinese|yuan
South Korea|Seoul|Asia|Korean|won
India|New Delhi|Asia|Hindi|rupee
Thailand|Bangkok|Asia|Thai|baht
Vietnam|Hanoi|Asia|Vietnamese|dong
Indonesia|Jakarta|Asia|Indonesian|rupiah
Malaysia|Kuala Lumpur|Asia|Malay|ringgit
the Philippines|Manila|Asia|Filipino|peso
Nepal|Kathmandu|Asia|Nepali|rupee
Pakistan|Islamabad|Asia|Urdu|rupee
Iran|Tehran|Asia|Persian|rial
Iraq|Baghdad|Asia|Arabic|dinar
Saudi Arabia|Riyadh|Asia|Arabic|riyal
Jordan|Amman|Asia|Arabic|dinar
Qatar|Doha|Asia|Arabic|riyal
Egypt|Cairo|Africa|Arabic|pound
Morocco|Rabat|Africa|Arabic|dirham
Tunisia|Tunis|Africa|Arabic|dinar
Algeria|Algiers|Africa|Arabic|dinar
Kenya|Nairobi|Africa|Swahili|shilling
Ethiopia|Addis Ababa|Africa|Amharic|birr
Ghana|Accra|Africa|English|cedi
Nigeria|Abuja|Africa|English|naira
Senegal|Dakar|Africa|French|franc
Uganda|Kampala|Africa|English|shilling
the United States|Washington|North America|English|dollar
Canada|Ottawa|North America|English|dollar
Mexico|Mexico City|North America|Spanish|peso
Cuba|Havana|North America|Spanish|peso
Jamaica|Kingston|North America|English|dollar
Brazil|Brasília|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|peso
Chile|Santiago|South America|Spanish|peso
Peru|Lima|South America|Spanish|sol
Colombia|Bogotá|South America|Spanish|peso
Ecuador|Quito|South America|Spanish|dollar
Uruguay|Montevideo|South America|Spanish|peso
Australia|Canberra|Oceania|English|dollar
New Zealand|Wellington|Oceania|English|dollar
Fiji|Suva|Oceania|English|dollar""".splitlines()
)

OTHER_CITIES: tuple[str, ...] = (
    "Boston", "San Francisco", "New York", "Chicago", "Seattle", "Munich", "Hamburg", "Barcelona", "Milan", "Sydney",
    "Toronto", "Mumbai", "Shanghai", "Lyon", "San Francisco, CA", "Boston, MA", "Paris, France", "Berlin, Germany",
)  # fmt: skip

GENERAL: tuple[tuple[str, str], ...] = (
    ("What is the largest planet?", "The largest planet is Jupiter."),
    ("What is the largest ocean?", "The largest ocean is the Pacific Ocean."),
    ("What is the highest mountain?", "The highest mountain is Mount Everest."),
    ("What is the fastest animal on land?", "The fastest animal on land is the cheetah."),
    ("What is the largest animal?", "The largest animal is the blue whale."),
    ("How many days are in a week?", "There are 7 days in a week."),
    ("How many months are in a year?", "There are 12 months in a year."),
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many letters are in the alphabet?", "There are 26 letters in the English alphabet."),
    ("How many legs does a spider have?", "A spider has 8 legs."),
    ("How many planets are there?", "There are 8 planets around the sun."),
    ("What color is the sky?", "The sky is blue."),
    ("What color is grass?", "Grass is green."),
    ("What color is snow?", "Snow is white."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("What is the chemical symbol for gold?", "The chemical symbol for gold is Au."),
    ("What is the chemical symbol for water?", "The chemical formula for water is H2O."),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
    ("What do bees make?", "Bees make honey."),
    ("What does the sun give us?", "The sun gives us light and heat."),
    ("What is the opposite of up?", "The opposite of up is down."),
)

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("happy", "sad"), ("light", "dark"), ("old", "new"),
    ("open", "closed"), ("full", "empty"), ("high", "low"), ("early", "late"), ("wet", "dry"), ("hard", "soft"),
    ("day", "night"), ("yes", "no"), ("left", "right"), ("near", "far"),
)  # fmt: skip

ANIMALS: tuple[tuple[str, str, str, str], ...] = (
    ("cat", "small", "in a house", "milk and fish"), ("dog", "friendly", "in a house", "meat and bones"),
    ("horse", "strong", "on a farm", "grass and hay"), ("cow", "calm", "on a farm", "grass"),
    ("fox", "clever", "in the forest", "mice and berries"), ("bear", "big", "in the forest", "fish and honey"),
    ("rabbit", "quick", "in the meadow", "carrots and leaves"), ("owl", "quiet", "in a tree", "mice"),
    ("whale", "huge", "in the sea", "very small sea animals"), ("frog", "green", "near the pond", "flies"),
    ("lion", "brave", "on the plain", "meat"), ("elephant", "heavy", "on the plain", "leaves and grass"),
    ("duck", "cheerful", "near the pond", "bread and plants"), ("mouse", "tiny", "in the field", "seeds and cheese"),
)  # fmt: skip

TRANSLATIONS: dict[str, dict[str, str]] = {
    "hello": {"French": "bonjour", "Spanish": "hola", "German": "hallo", "Italian": "ciao"},
    "thank you": {"French": "merci", "Spanish": "gracias", "German": "danke", "Italian": "grazie"},
    "water": {"French": "eau", "Spanish": "agua", "German": "Wasser", "Italian": "acqua"},
    "house": {"French": "maison", "Spanish": "casa", "German": "Haus", "Italian": "casa"},
    "cat": {"French": "chat", "Spanish": "gato", "German": "Katze", "Italian": "gatto"},
    "dog": {"French": "chien", "Spanish": "perro", "German": "Hund", "Italian": "cane"},
    "bread": {"French": "pain", "Spanish": "pan", "German": "Brot", "Italian": "pane"},
    "sun": {"French": "soleil", "Spanish": "sol", "German": "Sonne", "Italian": "sole"},
    "book": {"French": "livre", "Spanish": "libro", "German": "Buch", "Italian": "libro"},
    "friend": {"French": "ami", "Spanish": "amigo", "German": "Freund", "Italian": "amico"},
}

NAMES: tuple[str, ...] = (
    "Anna", "Tom", "Maria", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Julia",
    "Leo", "Lily", "Max", "Mia", "Nora", "Oscar", "Paul", "Rosa", "Sam", "Sara", "Theo", "Alice", "Bob",
)  # fmt: skip

FAMILY_NAMES: tuple[str, ...] = (
    "Smith", "Brown", "Green", "Miller", "Baker", "Hill", "Stone", "Fisher", "Young", "King", "Wood", "Lane",
)  # fmt: skip

JOBS: tuple[str, ...] = (
    "teacher", "doctor", "baker", "engineer", "gardener", "writer", "painter", "nurse", "farmer", "pilot",
    "cook", "singer",
)  # fmt: skip

HOBBIES: tuple[str, ...] = (
    "reading", "painting", "cooking", "swimming", "music", "chess", "running", "gardening", "dancing", "hiking",
)  # fmt: skip

LISTS: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "banana", "orange", "pear", "grape", "cherry", "lemon", "peach"),
    "colors": ("red", "blue", "green", "yellow", "orange", "purple", "black", "white"),
    "animals": ("cat", "dog", "horse", "cow", "fox", "bear", "rabbit", "owl"),
    "vegetables": ("carrot", "potato", "tomato", "onion", "pea", "bean", "corn", "cabbage"),
    "planets": ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"),
    "tools": ("hammer", "saw", "drill", "knife", "brush", "rope", "ladder", "bucket"),
    "days of the week": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "seasons": ("spring", "summer", "autumn", "winter"),
    "cities": ("Paris", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Oslo", "Vienna"),
}

DAYS: tuple[str, ...] = LISTS["days of the week"]
MONTHS: tuple[str, ...] = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
NUMBER_WORDS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
