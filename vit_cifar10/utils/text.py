"""Text from any source, made safe for a terminal or a picture, and folded to the width of a terminal."""

import textwrap

LINE = 79  # characters, so that lines do not wrap in a terminal of 80 columns


def printable(text):
    """Make text from any source safe for a terminal or a picture: replace all characters that cannot be printed."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def one_line(message):
    """A message, such as an exception, as one line that is safe to print."""
    return printable(" ".join(str(message).split()))


def shorten(text, longest=40):
    """Shorten text to at most `longest` characters plus an ellipsis, which replaces the middle of longer text.

    Characters that cannot be printed are replaced.
    """
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2) :]}"


def listed(names, most=5):
    """The first names of several, as text that is safe to print: "a, b, c and 17 more"."""
    names = list(map(printable, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def folded(text):
    """Text in lines of at most `LINE` characters. Words, such as paths, are kept whole."""
    options = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(line, LINE, **options) for line in text.split("\n"))


def filled(parts, indent):
    """Join parts with two spaces, in lines of at most `LINE` characters. Lines after the first one are indented."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}  {part}" if lines[-1].strip() else lines[-1] + part
        if len(joined) > LINE and lines[-1].strip():
            joined = lines.append("") or " " * indent + part
        lines[-1] = joined
    return "\n".join(lines)
