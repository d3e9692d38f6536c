"""Words that random inputs are made of: lists typed for this purpose, and syllables for words that nobody listed.

A model trained on a closed list would memorise it. So about half of all names and words come from syllables
(`made_up`), the rest from the lists below, and a model has to copy.

>>> made_up(Draw(3)) != made_up(Draw(4))
True
"""

# ruff: noqa: SIM905 (lists of words read better as text)

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FIRST_NAMES = """
Aaron Abigail Adam Adele Aisha Alan Albert Alex Alice Alina Amanda Amir Amy Ana Andre Andrea Andrew Angela Anil Anita
Anna Anton Arjun Arthur Ashley Astrid Ava Barbara Beatriz Ben Bianca Bill Bjorn Bob Brenda Brian Bruno Caleb Camila
Carla Carlos Carmen Carol Caroline Catherine Cecilia Charles Charlotte Chen Chloe Chris Clara Claudia Colin Connor
Cynthia Daisy Dan Daniel Daria David Deborah Denise Dennis Derek Diana Diego Dmitri Donna Doris Dylan Edgar Edith
Edward Eileen Elena Eli Elias Elizabeth Ella Ellen Emil Emily Emma Enzo Eric Erika Esther Ethan Eva Evelyn Fatima Felix
Fiona Frank Freya Gabriel Gary George Gerald Gina Giulia Gloria Grace Greta Gustav Hana Hannah Harold Harry Heidi Helen
Henry Hugo Ian Ibrahim Ida Igor Ines Ingrid Irene Iris Isaac Isabel Ivan Jack Jacob Jade James Jamie Jan Jane Janet
Jason Jean Jenny Jessica Jill Joan Joe Johan John Jonas Jorge Joseph Joy Juan Judy Julia Julian June Karen Karl Kate
Keith Kelly Ken Kevin Kim Kira Kurt Lara Laura Lea Lee Leo Leon Liam Lily Linda Lisa Logan Lola Lucas Lucy Luis Luke
Magnus Maria Marie Mark Marta Martin Mary Mateo Max Maya Megan Mei Mia Michael Miguel Mila Mohamed Molly Monica Nadia
Nancy Naomi Nathan Neil Nick Nicole Nina Noah Nora Olga Oliver Olivia Omar Oscar Otto Owen Pablo Pamela Patrick Paul
Paula Pedro Peter Petra Philip Phoebe Priya Quentin Rachel Rafael Raj Ralph Raquel Ray Rebecca Rita Robert Robin Roger
Rosa Rose Ruby Ruth Ryan Sally Sam Samuel Sandra Sara Scott Sean Selma Simon Sofia Sonia Stan Stella Steve Sue Susan
Svetlana Tara Ted Teresa Theo Thomas Tim Tina Tom Tony Uma Ursula Vera Victor Vikram Vince Violet Walter Wanda Wei Wendy
Will Wolfgang Xavier Yan Yara Yuki Yusuf Yvonne Zara Zoe
""".split()

LAST_NAMES = """
Abbott Adams Ahmed Allen Almeida Andersen Anderson Archer Arnold Bailey Baker Banks Barnes Bauer Becker Bell Bennett
Berg Bishop Black Blake Bond Bowen Boyd Bradley Brandt Brooks Brown Bruno Bryant Burke Burns Butler Byrne Campbell
Carlson Carter Castro Chan Chapman Chavez Chen Clark Clarke Cole Coleman Collins Cook Cooper Costa Cox Craig Cruz
Curtis Dahl Dalton Davies Davis Dawson Day Dean Delgado Diaz Dixon Doyle Duarte Dubois Duncan Dunn Eklund Ellis Evans
Farmer Ferguson Fernandez Ferrari Fischer Fisher Fleming Flores Ford Foster Fox Francis Franco Freeman Fuchs Fuller
Garcia Gardner Gibson Gomez Gonzalez Gordon Graham Grant Gray Green Greene Griffin Gupta Hall Hamilton Hansen Hardy
Harper Harris Hart Harvey Hayes Henry Hernandez Herrera Hill Hoffman Holmes Holt Howard Huang Hudson Hughes Hunt Hunter
Ibarra Ivanov Jackson Jacobs Jain James Jansen Jenkins Jensen Johnson Jones Jordan Joshi Kang Kaplan Kaur Keller Kelly
Kennedy Khan Kim King Klein Knight Koch Kovacs Kumar Lam Lambert Lane Lang Larsen Larson Lawson Lee Lewis Li Lin Liu
Long Lopez Love Lowe Lund Lynch Mann Marino Marsh Martin Martinez Mason Matthews Mayer Mendez Meyer Miles Miller Mills
Mitchell Moore Morales Moreau Moreno Morgan Morris Moss Muller Murphy Murray Myers Nash Nelson Newman Nguyen Nielsen
Noble Nolan Novak Nunez Olsen Olson Ortiz Osborne Owens Palmer Park Parker Patel Payne Perez Perry Peters Phillips
Pierce Pope Porter Powell Price Quinn Ramirez Ramos Rao Reed Reid Reyes Reynolds Rice Richter Riley Rivera Roberts
Robinson Rogers Romero Rosen Ross Rossi Roth Rowe Ruiz Russell Ryan Santos Sato Schmidt Schneider Schwarz Scott Shah
Sharma Shaw Silva Simmons Singh Smith Soto Spencer Stein Stevens Stewart Stone Suzuki Tanaka Taylor Thomas Thompson
Torres Tran Tucker Turner Vargas Vega Vogel Wagner Walker Wallace Walsh Wang Ward Watson Weaver Weber Wells West
White Wolf Wong Wood Wright Yang Young Zhang Zhao Ziegler Zimmerman
""".split()

ACCENTED = "José Zoë Núñez Müller André Chloé Søren Björk Peña García François Łukasz Jürgen Renée Håkon".split()

WORDS = """
able account acid across air alarm album almond amber anchor angle animal annual apple april arch area arm army arrow
art ash autumn baby back bacon badge bag bakery ball banana band bank bar barn basic basket bath battery beach beam bean
bear bed bee beef beer bell belt bench berry best big bike bill bird bitter black blanket blue board boat body bold bolt
bone book boot border bottle bowl box brain branch brass bread break brick bridge bright broken bronze brown brush
bucket budget build bus business busy butter button cabin cable cactus cake call calm camera camp candle canyon captain
car card care cargo carpet carrot case cash castle cat cattle cedar cell centre chain chair chalk change chart cheap
check cheese cherry chess chicken chief child choice circle city class clay clean clear client cliff clock cloud club
coach coal coast coat code coffee coin cold colour common company cook cool copper copy coral corn corner cost cotton
couch count country course court cover cow crab cream credit crew cross crowd crown cup curve custom daily dance dark
data date dawn day deal deep deer delta demo desert design desk detail diet digital dinner dirt dish dock doctor dog
dollar door double dragon draft dream dress drink drive drum dry duck dust eagle early earth east easy edge egg elbow
empty engine enter equal error event evening event extra eye fabric face factory fair fall family farm fast father
feather fence ferry field file film final fire first fish flag flame flat flight float floor flour flower fly fog
folder food foot forest fork form fort fox frame free fresh friend frog front frost fruit fuel full garden garlic gas
gate giant gift ginger girl glass global glove goat gold golf good grain grand grape grass gravel gray great green grid
group guard guest guide guitar habit hair half hall hammer hand harbor hard harvest hat head heart heavy herb hidden
high hill hire history hockey hold holiday home honey hook horse hotel hour house human hunt ice idea image inbox index
ink inner insect invoice iron island item ivory jacket jade jam jar jazz jelly job join jump jungle junior kettle key
kick king kitchen kite knee knife lab ladder lake lamp land lane large last late laundry lava law lead leaf learn lemon
letter level light lime line lion list little live local lock log long lost loud lucky lunch machine magic mail main
mango maple map market mask master match meadow meal meat medal melon member memory menu metal middle milk mill mint
mirror mist model modern money monkey moon morning moss mother motor mountain mouse mouth movie music narrow nature neck
needle nest network new night noble noise north note novel number oak oasis ocean office oil old olive onion open
orange orchard order organ other outer oven owl oxygen page paint palace palm panda panel paper park part party past
pasta path payment peach pear pearl pencil people pepper phone photo piano picture pilot pine pink pipe pizza place
plain plan planet plant plate play plum pocket poem point polar pond pool port post potato powder power press price
prime print private profit project proof public pump purple quarter queen quick quiet rabbit radio rail rain ranch rapid
raw record red region remote rent report rest rice rich ridge right ring river road robot rock roof room root rope rose
rough round route royal rubber ruby sail salad sale salmon salt sample sand sauce school screen script sea seat second
secret seed senior shadow shallow shape share sharp sheep shell shelf ship shirt shoe shop short shoulder show side
signal silent silk silver simple site skill skin sky sleep slow small smart smoke smooth snack snow soap social soft
soil solar song soup south space spare special spice spider spoon sport spring square staff stage stamp star start
state station steam steel stem stone stop store storm story street strong studio sugar summer sun supply surface sweet
swift table tail talk tall tank tape target task tax tea team tent term test text theory thick thin ticket tide tiger
timber time tiny tire title toast tomato tone tool top total tour tower town toy track trade trail train travel tree
trial tribe trip truck true trust tulip tunnel turtle twin type uncle under union unit upper urban user valley value
vanilla vault vector velvet video view village vine violin virtual visit vital voice wagon walk wall walnut warm
warning watch water wave wax weather web week west whale wheat wheel white wide wild wind window wine winter wire wise
wolf wonder wood wool word work world yard year yellow young zebra zero zone
""".split()

CITIES = """
Aberdeen Amsterdam Athens Atlanta Austin Baltimore Bangkok Barcelona Beirut Belfast Bergen Berlin Bern Bogota Bologna
Boston Bremen Brisbane Bristol Brussels Budapest Cairo Calgary Cambridge Cardiff Chicago Cleveland Cologne Copenhagen
Dallas Delhi Denver Detroit Dresden Dublin Durban Edmonton Florence Fresno Geneva Ghent Glasgow Graz Hamburg Hanoi
Helsinki Houston Istanbul Jakarta Karachi Kyoto Lagos Leeds Leipzig Lima Lisbon Liverpool London Lyon Madison Madrid
Malmo Manchester Marseille Memphis Miami Milan Montreal Munich Nairobi Nantes Naples Oakland Orlando Osaka Oslo Ottawa
Oxford Paris Perth Phoenix Porto Portland Prague Quito Reno Richmond Riga Rome Rotterdam Salem Santiago Savannah
Seattle Seoul Seville Sofia Spokane Springfield Stockholm Sydney Tampa Tokyo Toledo Toronto Trieste Tucson Turin
Utrecht Valencia Vancouver Vienna Warsaw Wellington Winnipeg York Zagreb Zurich
""".split()

COUNTRIES = """
Argentina Australia Austria Belgium Brazil Canada Chile China Colombia Croatia Cuba Denmark Egypt Estonia Finland France
Germany Ghana Greece Hungary Iceland India Ireland Israel Italy Japan Kenya Latvia Mexico Morocco Nepal Norway Peru
Poland Portugal Romania Serbia Spain Sweden Turkey UK Ukraine USA Vietnam
""".split()

STATES = (
    "AL AK AZ CA CO CT DE FL GA HI IA ID IL IN KS KY LA MA MD ME MI MN MO NC NE NJ NV NY OH OK OR PA SC TN TX UT VA WA"
)
STATES = STATES.split()
STREETS = "Street Avenue Road Lane Drive Court Place Square Way Boulevard Terrace Hill St Ave Rd Ln Dr Blvd".split()
DOMAINS = """
gmail.com yahoo.com outlook.com hotmail.com mail.org example.com example.org acme.com web.de gmx.net proton.me
company.co.uk contoso.com uni.edu startup.io bigcorp.com city.gov icloud.com
""".split()
TLDS = "com com com com org net io edu co.uk de fr info biz gov".split()
EXTENSIONS = """
pdf txt doc docx xls xlsx csv jpg jpeg png gif mp3 mp4 zip tar gz html htm py js c h json xml md ppt pptx log svg bak
""".split()
UNITS = "kg g lb oz cm mm km mi m ft in ml L MB GB KB kWh W V Hz C F s min h".split()
MONTHS = """
January February March April May June July August September October November December
""".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr kr pl pr qu sh sk sl sm sn sp st th tr tw"
_ONSETS = _ONSETS.split()
_VOWELS = "a e i o u a e i o ai ea ee ie oo ou y".split()
_CODAS = [""] * 24 + "b d g k l m n p r s t x n r l s ck ld ll lm nd ng nt rd rk rn rs ss st tt".split()


class Draw:
    """A random source whose every draw rests on `random.Random.random`, which Python promises never to change.

    Probes, pools and lists of programs therefore stay the same on every version of Python and of numpy.
    """

    def __init__(self, seed: int | str):
        self.random = random.Random(seed).random

    def below(self, n: int) -> int:
        """An int in [0, n)."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """An int in [low, high], both ends included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, p: float) -> bool:
        return self.random() < p

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """An item with probability in proportion to its weight."""
        left = self.random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """`n` different items in random order."""
        pool = list(items)
        for i in range(n):
            j = i + int(self.random() * (len(pool) - i))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def digits(self, n: int) -> str:
        return "".join("0123456789"[int(self.random() * 10)] for _ in range(n))

    def letters(self, n: int) -> str:
        """`n` capital letters."""
        return "".join(chr(65 + int(self.random() * 26)) for _ in range(n))


def made_up(draw: Draw, shortest: int = 3, longest: int = 9) -> str:
    """A pronounceable word in lower case that is (almost surely) in no list."""
    word = "" if draw.chance(0.8) else draw.choice("aeiou")
    for _ in range(draw.weighted((1, 2, 3), (0.25, 0.55, 0.2))):
        word += draw.choice(_ONSETS) + draw.choice(_VOWELS) + draw.choice(_CODAS)
    if len(word) < shortest:
        word += draw.choice(_ONSETS)[0] + draw.choice(_VOWELS)[0]
    return word[:longest]


def word(draw: Draw) -> str:
    """A word in lower case, listed or made up."""
    return draw.choice(WORDS) if draw.chance(0.55) else made_up(draw)


def first_name(draw: Draw) -> str:
    return draw.choice(FIRST_NAMES) if draw.chance(0.55) else made_up(draw).capitalize()


def last_name(draw: Draw) -> str:
    return draw.choice(LAST_NAMES) if draw.chance(0.55) else made_up(draw, 4, 10).capitalize()


def city(draw: Draw) -> str:
    """A place, of two words now and then."""
    place = draw.choice(CITIES) if draw.chance(0.6) else made_up(draw, 4).capitalize()
    if draw.chance(0.12):
        place = draw.choice(("New", "San", "Port", "Saint", "Fort", "North", "Los", "Lake")) + " " + place
    return place
