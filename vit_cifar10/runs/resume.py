"""The flags of a resumed run: its own, except for those that may change."""

import shlex
from pathlib import Path

from vit_cifar10.runs import checkpoint
from vit_cifar10.runs.run import find_run, is_near
from vit_cifar10.utils.errors import UserError

# Flags about where and how a run executes, not about what it computes.
RUNTIME_FLAGS = {"resume", "device", "num_workers", "compile", "log", "save_every", "save_minutes"}
RUNTIME_FLAGS |= {"data_path", "model_path", "output_path"}
LENGTH_FLAGS = ("epochs", "warmup_epochs")  # flags that set how long a run takes
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
    far = set_folders(parser, run.model_folder.resolve(), defaults)
    args = parser.parse_args(argv)
    for flag, place in far.items():
        if getattr(args, flag) is None:
            raise UserError(
                f"{path} names the folder {place} for --{flag}, which is far from the run; if you trust it, add"
                f" --{flag} {shlex.quote(str(place))}, or else choose another folder"
            )
    args.resume = str(path)
    for flag, value in vars(args).items():
        if flag not in MAY_CHANGE and value != own.get(flag, value):
            raise UserError(f"--{flag} cannot change when a run is resumed; leave out the flag")
    is_last = not resumed["is_older"] and path.name != checkpoint.PREVIOUS
    if args.epochs < resumed["epoch"] or (args.epochs == resumed["epoch"] and not is_last):
        raise UserError(f"{path} already has {resumed['epoch']} epochs; raise --epochs to train further")
    return args, run, resumed


def set_folders(parser, folder, defaults):
    """Set the parser's folders to the ones of the run in `folder`, even if it was started in another working folder.

    Folders that do not exist are replaced by `defaults`, {flag: path}. Those that are not near the run are set to None,
    and the user has to type them.

    Returns:
        The folders that are not near, {flag: path}.
    """
    home, far = find_home(folder, parser.get_default("model_path")), {}
    for flag, default in defaults.items():
        path = home / parser.get_default(flag)
        used = path / folder.name if flag == "output_path" else path
        if not used.is_dir():
            path = default
        elif not is_near(used, folder):
            far[flag], path = path, None
        parser.set_defaults(**{flag: path and str(path)})
        if flag == "output_path" and not used.is_dir():  # the run comes from another machine
            parser.set_defaults(log="none")
    return far


def as_typed(recipe, known):
    """A recipe's flags as a user would type them. Raises `UserError` for flags that are not in `known`."""
    unknown = recipe.keys() - known.keys()
    if unknown:
        raise UserError(f"unknown: {', '.join(sorted(unknown))}")
    switches = [f"--{flag}" for flag, value in recipe.items() if value is True]
    return switches + [f"--{flag}={value}" for flag, value in recipe.items() if not isinstance(value, bool | None)]


def find_home(folder, model_path):
    """The folder that a run was started in, to which its relative paths refer, or `Path()` if this is not known."""
    home = folder.parent
    for _ in Path(model_path).parts:
        home = home.parent
    is_home = (home / model_path / folder.name).resolve() == folder
    return home if is_home and home != Path.cwd() else Path()
