"""The flags of a resumed run: its own, except for those that may change."""

import os
from pathlib import Path

from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import RUNTIME_FLAGS, check_may_train, find_run, has_record
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.networks import sizes_of_all

MAY_CHANGE = {"epochs", *RUNTIME_FLAGS}


def resume_flags(parser, args, argv):
    """Find the run to resume, and combine its flags with the typed ones, which must be in `MAY_CHANGE`.

    The checkpoint may be untrusted, so its flags are checked as if they had been typed.

    Args:
        parser: the parser of train.py; its defaults become the run's flags.
        args: the flags that it parsed from `argv`.

    Returns:
        The flags, the run, and its checkpoint from `load_last`.

    Raises:
        UserError: there is no such run, its flags are not valid, or other flags were typed.
    """
    defaults = {flag: parser.get_default(flag) for flag in ("data_path", "output_path")}
    run = find_run(args.resume, args.model_path, args.output_path, checkpoint.NAMES)
    path = run.named_checkpoint or run.model_folder
    resumed = checkpoint.load_last(path)
    own = resumed["recipe"]
    try:
        parser.set_defaults(**vars(parser.parse_args(as_typed(own, known=vars(args)))))
    except UserError as error:
        raise UserError(f"the flags in {path} are not valid for a run ({error})") from error
    set_folders(parser, run.model_folder.resolve(), own, defaults)
    args = parser.parse_args(argv)
    args.resume = str(path)
    check_may_train(Path(args.output_path) / run.model_folder.resolve().name, own)
    for flag, value in vars(args).items():
        if flag not in MAY_CHANGE and value != own.get(flag, value):
            new = "" if flag in sizes_of_all() else f", or start a new run from its weights: --init {args.resume}"
            raise UserError(f"--{flag} cannot change when a run is resumed; leave out the flag{new}")
    is_incomplete = args.epochs < own["epochs"] or resumed["is_older"]
    if args.epochs < resumed["epoch"] or (args.epochs == resumed["epoch"] and is_incomplete):
        raise UserError(f"{path} already has {resumed['epoch']} epochs; raise --epochs to train further")
    return args, run, resumed


def set_folders(parser, folder, recipe, defaults):
    """Set the parser's folders to the ones of the run in `folder`, even if it was started in another working folder.

    A stranger can write any paths into a checkpoint. They are followed only if the output folder contains the record of
    this run, which the run itself has written there, or if it could have been there: an empty folder near the run.
    Otherwise, the folders are the `defaults`, {flag: path}.
    """
    home = find_home(folder, parser.get_default("model_path"))
    data, output = (home / parser.get_default(flag) for flag in ("data_path", "output_path"))
    record = output / folder.name
    is_own = has_record(record, recipe)
    if not (is_own or (is_near(record, folder) and is_empty(record))):
        output = defaults["output_path"]
        parser.set_defaults(log="none")  # the run comes from another machine
    if not (is_own or (is_near(data, folder) and data.exists())):
        data = defaults["data_path"]
    parser.set_defaults(data_path=str(data), output_path=str(output))


def is_near(path, folder):
    """Whether a path is inside the current folder, or inside the folder that contains model/. `folder` is model/RUN."""
    path = Path(os.path.realpath(path))
    return any(path.is_relative_to(place) for place in (Path.cwd(), folder.parent.parent))


def is_empty(folder):
    """Whether a folder exists and is empty."""
    return folder.is_dir() and not any(folder.iterdir())


def as_typed(recipe, known):
    """A recipe's flags as a user would type them. Raises `UserError` for flags that no user can type.

    That is, for flags that are not in `known`, and values that are no single text or number.
    """
    unknown = recipe.keys() - known.keys()
    if unknown:
        raise UserError(f"unknown: {', '.join(sorted(unknown))}")
    nested = [flag for flag, value in recipe.items() if isinstance(value, list | dict)]
    if nested:
        raise UserError(f"recipe.{nested[0]} is not a single value")
    switches = [f"--{flag}" for flag, value in recipe.items() if value is True]
    return switches + [f"--{flag}={value}" for flag, value in recipe.items() if not isinstance(value, bool | None)]


def find_home(folder, model_path):
    """The folder that a run was started in, to which its relative paths refer, or `Path()` if this is not known."""
    if Path(model_path).is_absolute():  # it says nothing about where the run was started
        return Path()
    home = folder.parent
    for _ in Path(model_path).parts:
        home = home.parent
    is_home = os.path.realpath(home / model_path / folder.name) == str(folder)
    return home if is_home and home != Path.cwd() else Path()
