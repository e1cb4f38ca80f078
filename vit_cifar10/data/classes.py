"""Match the classes of a data set to those of a network, whatever their order and however they are written.

    places, how = match_classes(["Dog", "cat"], ["cat", "dog", "owl"])      # [1, 0], "by name"

This file does not import PyTorch.
"""

import re
import sys
from pathlib import Path

from vit_cifar10.data.image_files import split_named
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import read_text
from vit_cifar10.utils.text import listed, one_line, printable, shorten

LARGEST_NAMES = 5_000_000  # bytes of a file of class names
SYNONYMS = {"car": "automobile", "auto": "automobile", "plane": "airplane", "aeroplane": "airplane"}
NUMBERED = re.compile(r"(?:(?:label|class)[ _-]?)?0*([0-9]{1,6})")  # "7", "007", "LABEL_7", "class 7"
SYNSET = re.compile(r"n[0-9]{8}")  # the names of ImageNet's folders; their order is that of the usual networks


def match_classes(names, known, in_order=False):
    """For each class of a data set, the place of the network's class that is the same.

    Args:
        names: the classes of the data set.
        known: the classes of the network. A name may be several, separated by commas, as ImageNet's are.
        in_order: whether the order of `names` is part of the data set, as for CIFAR-10, or only the alphabet's.

    Returns:
        The places, a list of different numbers, and how they were found, a text that is empty if `names` and `known`
        are equal.

    Raises:
        UserError: the classes do not fit; the message lists what differs.
    """
    names, known = list(names), list(known)
    if names == known:
        return list(range(len(names))), ""
    numbers = list(map(number_of, names))
    is_numbered = [number_of(name) for name in known] == list(range(len(known)))
    if in_order and is_numbered and len(names) == len(known):
        return list(range(len(names))), "by number"
    if len(names) == len(known) and all(map(SYNSET.fullmatch, names)) and not any(map(SYNSET.fullmatch, known)):
        return list(range(len(names))), "in the order of the synsets' numbers"
    places = places_by_name(names, known)
    if None not in places:
        check_different(names, known, places)
        return places, "by name"
    if None not in numbers and max(numbers) < len(known):
        check_different(names, known, numbers)
        return numbers, "by number"
    raise UserError(describe_difference(names, known, places, is_numbered))


def number_of(name):
    """The number that a name such as "LABEL_7" consists of, or None."""
    match = NUMBERED.fullmatch(name.strip().lower())
    return int(match[1]) if match else None


def key_of(name):
    """What names of one class have in common: without case, and with one kind of gap between words."""
    if number_of(name) is not None:
        return number_of(name)
    key = " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
    return SYNONYMS.get(key, key)


def places_by_name(names, known):
    """For each name, its place in `known`, or None. A part of a name between commas counts if no other class has it."""
    exact = {name: place for place, name in enumerate(known)}
    found = {}
    for of_name in (lambda name: [name], lambda name: name.split(",")):
        places = {}
        for place, name in enumerate(known):
            for key in map(key_of, of_name(name)):
                places.setdefault(key, set()).add(place)
        found |= {key: min(several) for key, several in places.items() if len(several) == 1 and key not in found}
    return [exact.get(name, found.get(key_of(name), found.get(key_of(name.split(",")[0])))) for name in names]


def check_different(names, known, places):
    """Raise `UserError` if two classes of a data set are the same class of the network."""
    first = {}
    for name, place in zip(names, places, strict=True):
        if first.setdefault(place, name) != name:
            raise UserError(
                f"the classes {first[place]} and {name} of these images are both {shorten(known[place])} for the"
                " network; merge their folders, or give --class_names"
            )


def describe_difference(names, known, places, is_numbered):
    """The message for classes that do not fit: what each side lacks, and what to do."""
    if is_numbered and not set(map(number_of, names)) & set(range(len(known))):
        examples = listed(map(shorten, names))
        return (
            f"the network only numbers its {len(known)} classes, and the images have names ({examples}); give"
            " --class_names FILE with a name per line, in the order of the network's logits"
        )
    missing = [shorten(name) for name, place in zip(names, places, strict=True) if place is None]
    others = [name for place, name in enumerate(known) if place not in places]
    only = f"; only the network has {listed(map(shorten, others))}" if others else ""
    return (
        f"only the images have {len(missing)} of their {len(names)} classes ({listed(missing)}){only}; check"
        " --data_path, or give --class_names FILE with the images' name of each class of the network, one per line"
    )


def describe_match(names, known, places, how):
    """A line about a match that `match_classes` has found."""
    pairs = [
        f"{name} is {shorten(known[place], 40)}"
        for name, place in zip(names, places, strict=True)
        if key_of(name) != number_of(known[place]) and name.casefold() != known[place].casefold()
    ]
    text = f"the {len(names):,} classes of these images are matched to the network's {how}"
    text += f": {listed(map(shorten, pairs))}" if pairs else ""
    untested = len(known) - len(names)
    return text + (f"; {untested:,} classes of the network have no images" if untested else "")


def labels_of_folders(files, known, unknown):
    """The network's class of each file, by the first folder in its path that is no split, and `unknown` for the others.

    What was matched is reported on standard error, and so are folders that are no classes.

    Args:
        files: paths with slashes.
        known: the classes of the network.
    """
    parts = [file.split("/")[:-1] for file in files]
    folders = [(names[1:] if names and split_named(names[0]) else names)[:1] for names in parts]
    names = sorted({name for folder in folders for name in folder})
    if not names:
        return [unknown] * len(files)
    try:
        places, how = match_classes(names, known)
        note = how and describe_match(names, known, places, how)
    except UserError:
        places = places_by_name(names, known)
        others = [name for name, place in zip(names, places, strict=True) if place is None]
        note = (
            f"no classes of the network have the names {listed(others)}, so the true class of these images is unknown"
        )
    if note:
        print(one_line(f"note: {note}"), file=sys.stderr)
    label = {name: unknown if place is None else place for name, place in zip(names, places, strict=True)}
    return [label[folder[0]] if folder else unknown for folder in folders]


def read_class_names(path, known):
    """The names of a network's classes `known` in a text file: one per line, or lines "NAME = CLASS" for some of them.

    Raises:
        UserError: it cannot be read, has another number of names, one twice, or one for a class that is not known.
    """
    try:
        lines = read_text(Path(path), longest=LARGEST_NAMES).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--class_names {path} cannot be read as text ({reason}); give a file of names") from error
    names = [printable(line.strip()) for line in lines if line.strip()]
    if names and all("=" in name for name in names):
        names = rename_some(dict(map(str.strip, name.split("=", 1)) for name in names), known, path)
    if len(names) != len(known):
        raise UserError(f"--class_names {path} has {len(names):,} names, but the network has {len(known):,} classes")
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UserError(f"--class_names {path} has the name {twice} twice; give each class a name of its own")
    return names


def rename_some(new_names, known, path):
    """The names of a network's classes, with those of `new_names`, {name: class}, for some. `path` is their file."""
    places = places_by_name(list(new_names.values()), list(known))
    if None in places:
        unknown = list(new_names.values())[places.index(None)]
        raise UserError(f"--class_names {path} renames {unknown}, but the network has only {listed(known, 8)}")
    if len(set(places)) < len(places):
        raise UserError(f"--class_names {path} renames a class of the network twice; give each class one name")
    names = list(known)
    for place, name in zip(places, new_names, strict=True):
        names[place] = name
    return names
