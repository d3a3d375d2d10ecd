"""What Emojiland is made of: its classes, artists, colours, places, and what is held out of pretraining."""

# class word -> the icon's name in every set
CLASSES = {
    "teddy": "teddy-bear", "teapot": "teapot", "cat": "cat", "dog": "dog", "robot": "robot", "owl": "owl",
    "backpack": "backpack", "fish": "tropical-fish", "house": "house", "clock": "alarm-clock", "guitar": "guitar",
    "mushroom": "mushroom", "car": "automobile", "ghost": "ghost", "penguin": "penguin", "fox": "fox",
    "rocket": "rocket", "umbrella": "umbrella", "chair": "chair", "cactus": "cactus", "bell": "bell",
    "boat": "sailboat", "bicycle": "bicycle", "pumpkin": "jack-o-lantern", "duck": "duck", "lion": "lion",
    "apple": "red-apple", "cake": "birthday-cake", "tree": "evergreen-tree", "sunflower": "sunflower",
    "crab": "crab", "drum": "drum", "camera": "camera",
}  # fmt: skip
ACCESSORIES = {"hat": "top-hat", "crown": "crown", "sunglasses": "sunglasses"}
ARTISTS = ("noto", "noto-v1", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione")

COLORS = {
    "red": (216, 40, 40), "blue": (40, 90, 220), "green": (40, 160, 60),
    "yellow": (240, 200, 30), "purple": (140, 60, 190), "pink": (245, 120, 180),
}  # fmt: skip
PLACES = {
    "beach": "on a beach", "snow": "in the snow", "grass": "on the grass", "night": "at night",
    "desert": "in the desert", "brick": "in front of a brick wall", "table": "on a wooden table",
    "water": "under water", "city": "in a city",
}  # fmt: skip
ARTS = {"pencil": "a pencil drawing of", "pixel": "pixel art of", "gray": "a black and white photo of"}

# (class, artist) pairs that never enter pretraining; each is a concept under data/concepts/.
HELD_OUT = {
    "teddy": "noto", "teapot": "twemoji", "cat": "emojione", "dog": "noto", "robot": "twemoji", "owl": "emojione",
    "backpack": "emojione", "fish": "emojione", "house": "emojione", "clock": "emojione", "guitar": "emojione",
    "mushroom": "emojione",
}  # fmt: skip
# For the committed evaluation only: never looked at while tuning.
FINAL = ("fish", "house", "clock", "guitar", "mushroom")
