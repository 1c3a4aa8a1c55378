"""The command line: `python -m minippo [COMMAND] [FLAGS]`; without a command, the demo.

Flags are the fields of the configuration dataclasses, and their help is the comment behind each field. A mistake is answered with
one line and exit status 2; a run that failed ends with 1, one that was stopped by a signal with 128 + its number.
"""

import argparse
import difflib
import inspect
import os
import re
import shlex
import sys
import tempfile
import traceback
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Callable, get_args, get_origin, get_type_hints

import torch

from .distributed import ProcessLost, rank, speaks, start, world_size
from .fast import keep_freed_memory
from .files.atomic import read_json
from .files.tokenizer import load_tokenizer
from .gpt2 import GPT2
from .ppo import PPOConfig
from .report import write_report
from .scoring.reward_model import RewardModel
from .scoring.rewards import RewardError, StopRun, own_functions
from .training import reward_training
from .training.config import RunConfig, check_types, pick_device, pick_dtype, place
from .training.data import load_labelled, load_pairs, text_of
from .training.run import load_policy, load_reward, train
from .training.run_folder import model_source, read_record
from .training.terminal import complain, protect, say


ALSO = {"--lr": "--learning-rate", "--kl-coef": "--init-kl-coef", "--kl-target": "--target", "--epochs": "--ppo-epochs",
        "--updates": "--steps", "--minibatch-size": "--mini-batch-size", "--max-tokens": "--max-new-tokens"}    # what people try


def reader(kind: type, optional: bool = False) -> Callable:
    """A function from a flag's text to its value: int, float or str; `none` where it is optional."""
    wanted = {int: "a whole number", float: "a number", str: "a text"}[kind] + (" or none" if optional else "")

    def read(text: str):
        if optional and text.lower() == "none":
            return None
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
        if kind is int and abs(value) >= 2**63 or kind is float and not (value == 0 or 1e-37 < abs(value) < 1e38):
            raise argparse.ArgumentTypeError(f"expected {wanted} of a size that 64 bits or fp32 hold, got {text!r}")
        return value
    return read


def new_parser(command: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m minippo {command}", description=COMMANDS[command][1], usage=f"python -m minippo {command} {example}",
        argument_default=argparse.SUPPRESS, allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120))
    def error(message: str):
        raise ValueError(f"{message}; see `{parser.prog} --help`")
    parser.error = error                                            # instead of half a page of usage
    return parser


def comments(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, from its source."""
    return dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(cls), re.M))


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """A flag for every field of a dataclass, explained by the comment behind the field, with its default."""
    hints, texts, group = get_type_hints(cls), comments(cls), parser.add_argument_group(cls.__name__)
    for field in fields(cls):
        kinds = get_args(hints[field.name]) or (hints[field.name],)
        kind = next(kind for kind in (bool, float, int, str) if kind in kinds)
        default = {MISSING: "required", None: "none"}.get(field.default, field.default)
        text = f"{texts.get(field.name, '')} [{default}]".replace("%", "%%")
        options: dict = {"action": argparse.BooleanOptionalAction} if kind is bool else {
            "type": reader(kind, type(None) in kinds), "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}
        if any(get_origin(one) is tuple for one in kinds):          # a number, or MIN MAX
            options |= {"nargs": "+", "metavar": ("N", "MAX")}
        group.add_argument("--" + field.name.replace("_", "-"), dest=field.name, help=text, **options)


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The flags given; every command has these three, and an unknown one is an error that names the nearest known one."""
    for name, default, text in (("--seed", 0, "of what is drawn at random [0]"),
                                ("--device", None, "cpu, cuda or cuda:1 [CUDA where there is one]"),
                                ("--dtype", None, "of the blocks: float32, bfloat16, float16 [bfloat16 on a GPU that has it]")):
        if name not in parser._option_string_actions:
            parser.add_argument(name, type=reader(int if name == "--seed" else str), default=default, metavar="X", help=text)
    known = parser._option_string_actions
    argv = [re.sub("^--[^=]+", lambda name: name[0] if name[0] in known else ALSO.get(name[0], name[0]), arg) for arg in argv]
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        parser.error(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return args


def read_settings(path: str, *classes: type) -> dict:
    """The fields of these dataclasses in a JSON file: an object of them, or a run's config.json; ValueError for an unknown one."""
    settings = read_json(place(path, "--config"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object of settings, got {settings!r:.60}")
    if all(isinstance(settings.get(part), dict) for part in ("run", "ppo")):
        settings = settings["run"] | settings["ppo"]
    known = [field.name for cls in classes for field in fields(cls)]
    if unknown := [name for name in settings if name not in known]:
        near = difflib.get_close_matches(unknown[0].replace("-", "_"), known, n=1)
        raise ValueError(f"{path}: unknown setting {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return settings


def build(cls: type, given: dict):
    """The dataclass from the flags given; a number or MIN MAX, a list so far, becomes a number or a tuple."""
    values = {field.name: given[field.name] for field in fields(cls) if field.name in given}
    values |= {name: value[0] if len(value) == 1 else tuple(value) for name, value in values.items() if isinstance(value, list)}
    missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
    if missing:
        raise ValueError(f"expected --{' and --'.join(name.replace('_', '-') for name in missing)}, too")
    check_types(cls, values)                                        # a config.json may hold anything
    return cls(**values)


# --- commands: the arguments behind the command's name -> exit status, None for 0 ------------------------------------

def run_demo(argv: list[str]) -> int:
    from .training import demo                                              # here: it is the one thing that a run does not need
    parser = new_parser("demo", "[FLAGS]")
    add_flags(parser, demo.DemoConfig)
    return demo.run_demo(build(demo.DemoConfig, vars(parse(parser, argv))))


def run_train(argv: list[str]) -> int:
    parser = new_parser("train", "--model gpt2 --prompts FILE --reward rule:sentiment --out runs/x [FLAGS]")
    parser.add_argument("--resume", action="store_true", default=False,
                        help="continue the run in --out; what is not given is as the run began")
    parser.add_argument("--allow-config-change", action="store_true", default=False,
                        help="go on although the settings differ from those that the run began with")
    parser.add_argument("--config", metavar="FILE", help="settings as a JSON object; a run's config.json will do; flags override it")
    add_flags(parser, RunConfig)
    add_flags(parser, PPOConfig)
    flags = vars(parse(parser, argv))
    given = (read_settings(flags["config"], RunConfig, PPOConfig) if "config" in flags else {}) | flags
    begun = read_record(place(given["out"], "--out")) if given["resume"] and "out" in given else {}
    if given["resume"] and not begun and not {"model", "prompts", "reward"} & given.keys():
        raise ValueError(f"--resume: there is no run in {given['out']!r}" if "out" in given else "--resume: expected the run's folder as --out")
    run, config = (build(cls, begun.get("run", {}) | begun.get("ppo", {}) | given) for cls in (RunConfig, PPOConfig))
    if "reward" not in flags and (code := own_functions(run.reward)):
        again = shlex.join(["python", "-m", "minippo", "train", *argv, "--reward", run.reward])
        raise ValueError(f"{' and '.join(code)}: a run folder is data, and code that it names is not imported, nor what --config names; "
                         f"to run it, give it again: {again}")
    return train(run, config, given["resume"], given["allow_config_change"]).status


def run_generate(argv: list[str]) -> None:
    parser = new_parser("generate", "--model DIR --prompt TEXT [--reference gpt2] [--reward rule:sentiment]")
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder, run folder (newest checkpoint), public name")
    parser.add_argument("--prompt", required=True, nargs="+", metavar="TEXT", help='one prompt or several, each in quotes; "" for none')
    parser.add_argument("--reference", default=None, metavar="DIR", help="a second model, drawing the same random numbers [none]")
    parser.add_argument("--reward", default=None, metavar="TEXT", help="score the responses with this, as in `train` [none]")
    parser.add_argument("--n", type=reader(int), default=3, metavar="N", help="responses to each prompt [3]")
    parser.add_argument("--max-new-tokens", type=reader(int), default=20, metavar="N", help="length limit of a response [20]")
    parser.add_argument("--temperature", type=reader(float), default=1.0, metavar="X", help="below 1 safer, above 1 wilder [1.0]")
    parser.add_argument("--top-k", type=reader(int), default=0, metavar="N", help="only the N likeliest tokens; 0: all [0]")
    parser.add_argument("--top-p", type=reader(float), default=1.0, metavar="X", help="likeliest tokens up to this probability [1.0]")
    args = parse(parser, argv)
    if args.n < 1:
        raise ValueError(f"--n: expected a whole number above 0, got {args.n}")
    device, dtype = pick_device(args.device), pick_dtype(args.dtype)
    reward = load_reward(args.reward, device, dtype, Path("labels.jsonl")) if args.reward else None
    queries = [prompt for prompt in args.prompt for _ in range(args.n)]
    answers = {}                                                    # model -> its responses, in the order of the queries
    for name in [args.model] if args.reference is None else [args.model, args.reference]:
        tokenizer, model = load_policy(model_source(name), device, dtype)
        encoded = [torch.tensor(tokenizer.encode(query) or [tokenizer.eos_token_id]) for query in queries]      # texts begin after EOS
        tokens = model.generate(encoded, args.max_new_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                                seed=args.seed, eos_token_id=tokenizer.eos_token_id)
        answers[name] = [text_of(tokenizer, response, True) for response in tokens]
    scores = {name: reward(queries, responses) for name, responses in answers.items()} if reward else {}
    for start in range(0, len(queries), args.n):
        say(f"\n{queries[start]}")
        for name, responses in answers.items():
            say(f"  {name}")
            for i in range(start, start + args.n):
                say("    " + (f"{scores[name][i]:8.3f}  " if reward else "") + responses[i].replace("\n", "\n    "))


def run_reward_model(argv: list[str]) -> None:
    parser = new_parser("reward-model", "--model gpt2 --labels rt-polarity/ --out runs/reward [FLAGS]")
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder, run folder or public name to start from")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--pairs", metavar="FILE", help='preferences, .jsonl objects of "query", "chosen", "rejected"')
    data.add_argument("--labels", nargs="+", metavar="FILE",
                      help='.jsonl objects of "text" and "label", 1 or 0; or good and bad texts, one a line; or rt-polarity')
    add_flags(parser, reward_training.RewardModelConfig)
    given = vars(parse(parser, argv))
    config, out = build(reward_training.RewardModelConfig, given), place(given["out"], "--out")
    if rank() == 0 and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another --out")
    if "pairs" in given:
        learn, examples = reward_training.train_on_pairs, [load_pairs(given["pairs"])]
    else:
        learn, examples = reward_training.train_on_labels, zip(*load_labelled(given["labels"]))
    device, dtype = pick_device(given["device"]), pick_dtype(given["dtype"])
    source = model_source(given["model"])
    model = RewardModel.from_gpt2(GPT2.from_pretrained(source, device, dtype), load_tokenizer(source),
                                  torch.Generator().manual_seed(config.seed))
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()                         # what cannot be written fails now, not after the training
    result = learn(model, *examples, config)
    model.save_pretrained(out)
    say(f"accuracy {result.accuracy:.3f} on {result.held_out} held-out examples, after {result.trained} in "
        f"{result.seconds:.0f} s. Use it: python -m minippo train --reward model:{out}")


def run_report(argv: list[str]) -> None:
    parser = new_parser("report", "DIR [DIR ...]")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run folders, as `train --out` wrote them")
    say(str(write_report(*map(os.path.expanduser, parse(parser, argv).folders))))


def run_check(argv: list[str]) -> int:
    from .check import run_checks
    parser = new_parser("check", "[--model gpt2]")
    parser.add_argument("--model", default=None, metavar="DIR", help="model or run folder, or public name [a small random model]")
    args = parse(parser, argv)
    return run_checks(args.model and model_source(args.model), pick_device(args.device), pick_dtype(args.dtype))


def run_bench(argv: list[str]) -> int | None:
    from . import bench
    parser = new_parser("bench", "[FLAGS]")
    add_flags(parser, bench.BenchConfig)
    return bench.run_bench(build(bench.BenchConfig, vars(parse(parser, argv))))


COMMANDS = {
    "demo": (run_demo, "the whole of RLHF in about a minute, nothing to download; what runs without a command"),
    "train": (run_train, "train GPT-2 with PPO on a reward of yours"),
    "generate": (run_generate, "sample from a policy, beside its reference or another model"),
    "reward-model": (run_reward_model, "train a reward model from preferences or labelled texts"),
    "report": (run_report, "write report.html of a run, or lay several side by side"),
    "check": (run_check, "check the algorithm's invariants on this machine and these weights"),
    "bench": (run_bench, "measure rollout, scoring and update: time, memory, share of the machine's limit"),
}
OVERVIEW = "\n".join(["usage: python -m minippo [COMMAND] [FLAGS]", "", "PPO fine-tuning of GPT-2. Commands:", "",
                      *(f"  {name:14}{text}" for name, (_, text) in COMMANDS.items()), "",
                      "python -m minippo COMMAND --help explains every flag of a command."])


def main(argv: list[str]) -> int:
    """Run a command; returns the exit status."""
    if argv and argv[0] in ("-h", "--help"):
        say(OVERVIEW)
        return 0
    name = "demo" if not argv or argv[0].startswith("-") else argv[0]
    keep_freed_memory()                                             # pretraining and reward models, too: they make no trainer
    try:
        if not start()[0]:                                              # one of several processes: the first one talks
            sys.stdout = open(os.devnull, "w")
            warnings.simplefilter("ignore")
        if world_size() > 1 and name in ("generate", "report", "check"):
            raise ValueError(f"{name} runs in one process: leave torchrun out")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            raise ValueError(f"no command {name!r}" + (f"; did you mean {near[0]}?" if near else "")
                             + f" There are: {', '.join(COMMANDS)}")
        return COMMANDS[name][0](argv[1:] if argv[:1] == [name] else argv) or 0
    except KeyboardInterrupt:
        return 130
    except StopRun as stop:                                         # at the terminal, while it rated what was generated
        return 128 + stop.signum if stop.signum else 0
    except (RewardError, FloatingPointError, MemoryError) as error:         # the input was fine, the run was not
        if isinstance(error, RewardError) and error.__cause__ is not None:
            complain("".join(traceback.format_exception(error.__cause__)))         # the user's own function: where it failed
        complain(f"error: {str(error) or type(error).__name__}")
        return 130 if isinstance(error.__cause__, KeyboardInterrupt) else 1
    except (ValueError, OSError) as error:
        text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        complain(f"error: {text or type(error).__name__}")
        return 2
    except ProcessLost as error:
        complain(f"error: {error}")
        return int(speaks())                                        # the other one's status counts


def program() -> None:
    """The program, also as the command `minippo`: main, in which printing cannot fail."""
    protect()
    status = main(sys.argv[1:])
    if world_size() > 1:                                            # at once: what waits for others may wait for ever
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    program()
