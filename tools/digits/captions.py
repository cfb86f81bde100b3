"""What the pretraining says about an image: templates around the ways to name its digit."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CATEGORIES = ("sans serif", "serif", "display", "monospace", "script")

TEMPLATES = (
    'a photo of the number: "{}".',
    "a photo of the number {}.",
    "a photo of the digit {}.",
    "a photo of a {}.",
    'a photo of "{}".',
    "an image of the number {}.",
    "an image of a {}.",
    "a picture of the number {}.",
    "a picture of a {}.",
    "a drawing of the number {}.",
    "a drawing of a {}.",
    "a sketch of a {}.",
    "a painting of the digit {}.",
    "a low resolution photo of a {}.",
    "a blurry photo of the number {}.",
    "a bad photo of a {}.",
    "a black and white photo of the number {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the digit {}.",
    "a sign with the number {}.",
    "a printed {}.",
    "a written {}.",
    "the number {}.",
    "the digit {}.",
    "the numeral {}.",
    "number {}",
    "digit {}",
    "this is a {}.",
    "this is the number {}.",
    "it says {}.",
    "one digit: {}.",
    "{}",
    "{}.",
)

ZERO_SHOT_TEMPLATES = (
    'a photo of the number: "{}".',
    "a photo of the digit {}.",
    "a low resolution photo of a {}.",
    "a black and white photo of the number {}.",
    "a drawing of the number {}.",
    "a written {}.",
    "the number {}.",
)

CATEGORY_TEMPLATES = (
    "the number {} in a {category} font.",
    "a {category} {}.",
    "a photo of a {category} {}.",
    "the digit {}, set in {category} type.",
)


def names(digit: int) -> tuple[str, ...]:
    """The ways to name `digit` that fill a template's slot."""
    return (WORDS[digit], str(digit))


def captions(*, digit: int, category: str) -> list[str]:
    """Every caption that is true of an image of `digit` in a font of `category`."""
    plain = [template.format(name) for template in TEMPLATES for name in names(digit)]
    styled = [
        template.format(name, category=category)
        for template in CATEGORY_TEMPLATES
        for name in names(digit)
    ]
    return plain + styled


def corpus() -> list[str]:
    """Every caption of every digit and category, without repeats, in a fixed order."""
    every = [
        caption
        for digit in range(10)
        for category in CATEGORIES
        for caption in captions(digit=digit, category=category)
    ]
    return list(dict.fromkeys(every))
