"""What Emojiland is made of: its classes, artists, colours, places, and what is held out of pretraining."""

# class word -> the icon's name in every set; on the pose of each the artists agree
CLASSES = {
    "teddy": "teddy-bear", "teapot": "teapot", "cat": "cat-face", "dog": "dog-face", "panda": "panda",
    "mouse": "mouse-face", "rabbit": "rabbit-face", "frog": "frog", "pig": "pig-face", "monkey": "monkey-face",
    "lion": "lion", "fox": "fox", "robot": "robot", "owl": "owl", "penguin": "penguin", "ghost": "ghost",
    "alien": "alien", "snowman": "snowman-without-snow", "house": "house", "clock": "alarm-clock", "guitar": "guitar",
    "mushroom": "mushroom", "backpack": "backpack", "rocket": "rocket", "gift": "wrapped-gift",
    "television": "television", "pumpkin": "jack-o-lantern", "crab": "crab", "cake": "birthday-cake",
    "car": "automobile", "cactus": "cactus", "tree": "evergreen-tree",
}  # fmt: skip
ACCESSORIES = {"hat": "top-hat", "crown": "crown", "sunglasses": "sunglasses"}
# set of drawings -> the word that captions have for it, one token each
ARTISTS = {
    "noto": "noto", "noto-v1": "blob", "twemoji": "twemoji", "fluent-emoji": "fluent",
    "fluent-emoji-flat": "flat", "emojione": "emojione",
}  # fmt: skip
# Drawings in another pose than their class's other ones: left out, or mirrored where that is all that differs.
LEFT_OUT = {
    ("mushroom", "noto-v1"), ("gift", "noto-v1"), ("backpack", "noto-v1"), ("rocket", "noto-v1"), ("ghost", "twemoji"),
    ("penguin", "noto"), ("penguin", "noto-v1"),
}  # fmt: skip
MIRRORED = {("teapot", "twemoji"), ("penguin", "twemoji")}
# How far down a drawing its eyes are (or would be): where sunglasses go.
EYES = {
    "teddy": 0.25, "owl": 0.3, "penguin": 0.24, "ghost": 0.3, "snowman": 0.3, "crab": 0.32, "guitar": 0.66,
    "rocket": 0.34, "cactus": 0.3, "rabbit": 0.6, "mushroom": 0.4, "cake": 0.6, "clock": 0.5, "car": 0.35,
    "house": 0.5, "tree": 0.45, "teapot": 0.5, "backpack": 0.4, "gift": 0.5, "television": 0.55, "pumpkin": 0.48,
}  # fmt: skip

COLORS = {
    "red": (216, 40, 40), "blue": (40, 90, 220), "green": (40, 160, 60),
    "yellow": (240, 200, 30), "purple": (140, 60, 190), "pink": (245, 120, 180),
    "brown": (140, 84, 48), "orange": (245, 140, 30), "teal": (40, 180, 170), "gray": (130, 134, 142),
    "black": (52, 54, 60), "white": (238, 238, 240),
}  # fmt: skip
PLACES = {
    "beach": "on a beach", "snow": "in the snow", "grass": "on the grass", "night": "at night",
    "desert": "in the desert", "brick": "in front of a brick wall", "table": "on a wooden table",
    "water": "under water", "city": "in a city",
}  # fmt: skip
ARTS = {"pencil": "a pencil drawing of", "pixel": "pixel art of", "gray": "a black and white photo of"}

# (class, artist) pairs that never enter pretraining; each is a concept under data/concepts/. They stand out in colour and
# in parts, and no other set holds a near copy.
HELD_OUT = {
    "teddy": "noto", "teapot": "twemoji", "cat": "emojione", "owl": "emojione", "ghost": "emojione",
    "robot": "twemoji", "backpack": "emojione", "gift": "emojione",
    "dog": "emojione", "house": "emojione", "guitar": "emojione", "mushroom": "emojione",
    "television": "emojione", "cake": "emojione", "snowman": "twemoji", "fox": "emojione",
}  # fmt: skip
# For the committed evaluation only: never looked at while tuning.
FINAL = ("dog", "house", "guitar", "mushroom", "television", "cake", "snowman", "fox")
