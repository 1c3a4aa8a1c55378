"""Rows of FAULTS.md that no other file tests: real limits, real signals, and a whole PPO step on odd inputs."""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo import __main__ as cli
from minippo.files.checkpoint import verify_folder
from minippo.policy import GPT2WithValueHead
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.training.run_folder import newest_checkpoint
from minippo.files.safetensors import read_safetensors, write_safetensors
from minippo.files.tokenizer import EOS
from minippo.training.bpe import train_bpe
from test_run import forked, start, status_of, write_model
from test_safetensors import hostile_pickle

QUERIES, RESPONSES = make_ragged([3, 9, 1, 5]), make_ragged([4, 1, 7, 7], seed=1)


def bits(trainer: PPOTrainer) -> list[torch.Tensor]:
    """Weights and Adam's moments, copied."""
    slots = [value for slot in trainer.optimizer.state_dict()["state"].values() for value in slot.values()]
    return [x.detach().clone() for x in (*trainer.model.parameters(), *slots)]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def finite(stats: dict) -> bool:
    return all(torch.isfinite(torch.as_tensor(value)).all() for value in stats.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_model(folder)
    start(folder, folder / "first", steps=1)                # torch imports its optimizers' helpers only now: before the forks
    return folder


# --- signals (rows 3 and 5) -----------------------------------------------------------------------

@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_from_outside_ends_the_program_with_its_status_and_all_saved(base, tmp_path, signum, status):
    """The whole program, in a process of its own, at whatever moment the signal arrives after the first update."""
    out = tmp_path / "run"
    argv = ["train", "--model", str(base / "model"), "--prompts", str(base / "prompts.txt"), "--reward", "rule:length=2", "--out",
            str(out), "--steps", "1000000", "--batch-size", "4", "--max-new-tokens", "3", "--device", "cpu", "--quiet"]
    pid = forked(lambda: os._exit(cli.main(argv)))
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(pid, signum)
    assert status_of(pid) == status
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and verify_folder(newest_checkpoint(out))["step"] == steps[-1]


# --- output that cannot be written (row 84) -------------------------------------------------------

@pytest.mark.parametrize("flag", ["--one-line", "--no-one-line"])
@pytest.mark.parametrize("kind", ["full", "pipe", "closed"])
def test_a_run_whose_output_cannot_be_written_runs_to_its_end(base, tmp_path, monkeypatch, kind, flag):
    """Its own lines and those that the user's function prints."""
    if kind == "full" and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a Linux device on which every write fails")
    (tmp_path / "talking.py").write_text("def score(q, r):\n    print('x' * 9000, flush=True)\n    return [1.0] * len(q)\n")
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--model", str(base / "model"), "--prompts", str(base / "prompts.txt"), "--reward", "talking:score", "--out", "run",
            "--steps", "2", "--batch-size", "4", "--mini-batch-size", "4", "--max-new-tokens", "3", "--device", "cpu", flag]

    def child():
        if kind == "closed":
            sys.stdout = sys.stderr = None                                             # as Python begins then
            for number in (0, 1, 2):
                os.close(number)
        else:
            reading, writing = os.pipe()
            os.dup2(writing if kind == "pipe" else os.open("/dev/full", os.O_WRONLY), 1)
            os.close(reading), os.close(writing)
            sys.stdout = open(1, "w", closefd=False)
        sys.argv[1:] = argv
        try:
            cli.program()
        except SystemExit as ended:
            os._exit(ended.code)
    assert status_of(forked(child)) == 0
    newest = newest_checkpoint(tmp_path / "run")
    assert newest.name == "checkpoint-000002" and len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


# --- scores and ratios (rows 9 and 12) ------------------------------------------------------------

@pytest.mark.parametrize("score", [0.0, 3.0, 1e6])
@pytest.mark.parametrize("config", [{}, {"whiten_rewards": True}, {"use_score_scaling": True, "use_score_norm": True}],
                         ids=["plain", "whiten_rewards", "score scaling"])
@pytest.mark.parametrize("lengths", [[4, 1, 7, 7], [1, 1, 1, 1]], ids=["ragged", "one token"])
def test_a_constant_score_never_divides_by_its_deviation_of_zero(score, config, lengths):
    trainer = PPOTrainer(PPOConfig(learning_rate=1e-3, ppo_epochs=2, **config), make_policy(n_layer=1))
    for _ in range(2):
        assert finite(trainer.step(QUERIES, make_ragged(lengths, seed=1), [score] * 4))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_an_exploded_ratio_is_skipped_and_counted(monkeypatch):
    """The rollout claims log-probabilities lower by 20: every ratio is e^20 = 4.9e8, far above the threshold of 10."""
    trainer = PPOTrainer(PPOConfig(learning_rate=1e-3), make_policy())
    trainer.step(QUERIES, RESPONSES, [1.0, 0.0, 2.0, -1.0])
    before, rollout = bits(trainer), PPOTrainer.forward_pass

    def claims_less(self, batch, minibatches):
        rollout(self, batch, minibatches)
        batch.logprobs = batch.logprobs - 20
    monkeypatch.setattr(PPOTrainer, "forward_pass", claims_less)
    with pytest.warns(UserWarning, match="sampling and scoring disagree"):
        stats = trainer.step(QUERIES, RESPONSES, [1.0, 0.0, 2.0, -1.0])
    assert same(before, bits(trainer)) and (stats["ppo/skipped"], stats["ppo/updates"]) == (4, 0) and finite(stats)


# --- memory and disk (rows 13 and 15) -------------------------------------------------------------

@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory, RLIMIT_AS, is Linux'")
def test_a_process_without_memory_says_what_to_do_and_leaves_the_checkpoint(base, tmp_path):
    """In its second update a child is left without any piece of 4 MB; the logits of 2048 responses of 5 tokens are 12 MB."""
    out, message, ballast = tmp_path / "run", tmp_path / "message", []
    start(base, out, steps=1, lr_schedule="constant")

    def score(queries, responses):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for megabytes in (64, 16, 4):                                                  # what earlier tests freed
            with suppress(RuntimeError):
                while True:
                    ballast.append(torch.empty(megabytes * 2**20, dtype=torch.uint8))
        return [0.0] * len(queries)

    def child():
        try:
            start(base, out, steps=2, lr_schedule="constant", batch_size=2048, mini_batch_size=2048, max_new_tokens=5,
                  score_fn=score, resume=True, allow_config_change=True, save_every=10)
        except MemoryError as error:
            message.write_text(str(error))
    assert status_of(forked(child)) == 0
    advice = ("mini_batch_size", "max_new_tokens", "gradient_checkpointing")
    assert all(words in message.read_text() for words in ("update 2: out of memory (", "checkpoint-000001", *advice))
    assert verify_folder(newest_checkpoint(out))["step"] == 1


def with_small_files(folder: Path, action) -> None:
    """Do it where no file may be larger than 20 kB: the kernel refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))                          # Python ignores SIGXFSZ: write fails
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_under_a_checkpoint_leaves_the_old_one_and_no_rubbish(tmp_path):
    """Model of 25,000 parameters, 100 kB, and 20 kB of room."""
    trainer, folder = PPOTrainer(PPOConfig(), make_policy()), tmp_path / "checkpoint"
    trainer.save_checkpoint(folder)
    trainer.step(QUERIES, RESPONSES, [1.0, 0.0, 2.0, -1.0])
    with pytest.raises(OSError):
        with_small_files(folder, lambda: trainer.save_checkpoint(folder))
    assert verify_folder(folder)["step"] == 0 and [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    trainer.save_checkpoint(folder)
    assert verify_folder(folder)["step"] == 1


CLONE_NEWUSER, CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x10000000, 0x00020000, 0x4000, 0x40000


def mount_small_disk(folder: Path, size: bytes) -> bool:
    """Mount a tmpfs that this process alone sees, and that ends with it; False where the system does not allow that."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)                                      # or files would belong to nobody
    return (libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
            and libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=" + size) == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a Linux tmpfs")
def test_a_disk_that_holds_one_checkpoint_but_not_two(tmp_path):
    """A real file system of 600 kB for checkpoints of 400 kB: the first fits, the next one fails, and the first is still there.

    Model 100 kB, its reference 100 kB, and Adam's two moments, which come with the first update, 200 kB.
    """
    def child():
        if not mount_small_disk(tmp_path, b"600k"):
            os._exit(77)
        trainer = PPOTrainer(PPOConfig(), make_policy())
        trainer.step(QUERIES, RESPONSES, [1.0, 0.0, 2.0, -1.0])
        trainer.save_checkpoint(tmp_path / "first")
        with pytest.raises(OSError):
            trainer.save_checkpoint(tmp_path / "second")
        assert [path.name for path in tmp_path.iterdir()] == ["first"]
        with pytest.raises(OSError):
            trainer.save_checkpoint(tmp_path / "first")                                # nor may it be replaced
        assert verify_folder(tmp_path / "first")["step"] == 1 and [path.name for path in tmp_path.iterdir()] == ["first"]
    status = status_of(forked(child))
    if status == 77:
        pytest.skip("this system lets no process mount a file system of its own")
    assert status == 0


# --- files that are not what they should be (rows 25, 26 and 34) ----------------------------------

def test_links_that_lead_nowhere_are_passed_over_or_named(base, tmp_path, capsys):
    out = tmp_path / "run"
    start(base, out, steps=1, lr_schedule="constant")
    (out / "checkpoint-000008").symlink_to("checkpoint-000008")
    (out / "checkpoint-000009").symlink_to("gone")
    assert newest_checkpoint(out).name == "checkpoint-000001"
    said = capsys.readouterr().err
    assert all(f"checkpoint-{n:06d} is damaged and passed over" in said for n in (8, 9))

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").symlink_to(base / "model" / "config.json")
    (model / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(FileNotFoundError, match="model.safetensors .a broken link to model.safetensors"):
        GPT2WithValueHead.from_pretrained(str(model), device="cpu")


def test_a_pickle_in_place_of_weights_is_refused_and_never_read(base, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((base / "model" / "config.json").read_bytes())
    (model / "pytorch_model.bin").write_bytes(hostile_pickle(tmp_path / "touched"))
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors: expected a folder with config.json"):
        GPT2WithValueHead.from_pretrained(str(model), device="cpu")
    with pytest.raises(FileNotFoundError, match="is no folder: expected a folder with .*model.safetensors"):
        GPT2WithValueHead.from_pretrained(str(model / "pytorch_model.bin"), device="cpu")
    os.rename(model / "pytorch_model.bin", model / "model.safetensors")
    with pytest.raises(ValueError, match="never unpickles"):
        GPT2WithValueHead.from_pretrained(str(model), device="cpu")
    assert not (tmp_path / "touched").exists()


def test_doubles_are_not_rounded_in_silence(tmp_path):
    policy = make_policy(n_layer=1)
    policy.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    write_safetensors(path, read_safetensors(path) | {"transformer.ln_f.bias": torch.zeros(32, dtype=torch.float64)})
    with pytest.raises(ValueError, match="transformer.ln_f.bias is torch.float64, expected one of float32, float16, bfloat16"):
        GPT2WithValueHead.from_pretrained(str(tmp_path / "model"), device="cpu")


# --- prompts and lengths, through a whole step (rows 44 and 45) -----------------------------------

TOKENIZER = train_bpe(["the film is a joy", "the film is a bore"] * 3, 280)


def trainer_for_texts() -> PPOTrainer:
    policy = make_policy(vocab_size=TOKENIZER.vocab_size, n_layer=1)
    return PPOTrainer(PPOConfig(learning_rate=1e-3), policy, tokenizer=TOKENIZER)


@pytest.mark.parametrize("text", [" ", "   \n\t ", "\ud800", "half \udfff a pair", f"before {EOS} after", EOS, "\0", "é" * 20],
                         ids=ascii)
def test_strange_prompts_train(text):
    """Each beside an ordinary one. The end marker in a prompt is text: it neither ends the query nor the response."""
    trainer, queries = trainer_for_texts(), [torch.tensor(TOKENIZER.encode(prompt)) for prompt in (text, "the film is")]
    assert TOKENIZER.eos_token_id not in queries[0]
    responses = trainer.generate(queries, max_new_tokens=8)
    assert finite(trainer.step(queries, responses, [1.0, -1.0])) and trainer.steps_done == 1
    alone = make_policy(vocab_size=TOKENIZER.vocab_size, n_layer=1).generate(queries[:1], max_new_tokens=8, do_sample=False)
    together = make_policy(vocab_size=TOKENIZER.vocab_size, n_layer=1).generate(queries, max_new_tokens=8, do_sample=False)
    assert torch.equal(alone[0], together[0])


@pytest.mark.parametrize("text, message", [
    ("", r"queries\[1\]: expected a non-empty"), ("x" * 1_000_000, r"queries\[1\] .*64 positions")],
    ids=["empty", "a million characters"])
def test_impossible_prompts_are_named_before_anything_is_drawn(text, message):
    trainer = trainer_for_texts()
    before = trainer.generator.get_state()
    queries = [torch.tensor(TOKENIZER.encode(prompt), dtype=torch.long) for prompt in ("the film is", text)]
    with pytest.raises(ValueError, match=message):
        trainer.generate(queries, max_new_tokens=8)
    assert torch.equal(before, trainer.generator.get_state())


def test_eos_at_once_no_eos_and_the_last_position_in_one_batch():
    """A model that says EOS (2) after token 3 and otherwise never; 8 positions, and the longest row fills them all.

    Blocks and wpe are 0, so hidden states are the final layer norm of wte alone: (1, -1) after tokens 0 and 1, (-1, 1) after 2
    and 3. The logits are wte times that, 10 40 -40 -10 and the opposite: 0 and 1 are followed by 1, and 2 and 3 by 2.
    """
    policy = make_policy(vocab_size=4, n_positions=8, n_embd=2, n_head=1, n_layer=1)
    with torch.no_grad():
        for name, parameter in policy.transformer.named_parameters():
            parameter.fill_(1.0 if name == "ln_f.weight" else 0.0)
        policy.transformer.wte.weight.copy_(torch.tensor([[5.0, -5], [20, -20], [-20, 20], [-5, 5]]))
    trainer = PPOTrainer(PPOConfig(), policy)
    queries = [torch.tensor([0, 0, 3]), torch.tensor([0, 0]), torch.tensor([1] * 7)]
    responses = trainer.generate(queries, max_new_tokens=[5, 6, 1], eos_token_id=2)
    assert [response.tolist() for response in responses] == [[2], [1] * 6, [1]]
    stats = trainer.step(queries, responses, [1.0, 0.0, 2.0])
    assert finite(stats) and stats["tokens/responses_dist"].tolist() == [1, 6, 1] and len(stats["ppo/policy/ratio"]) == 4 * 8
    assert (stats["objective/logprobs"][[0, 2], 1:] == 0).all()
    with pytest.raises(ValueError, match="8 positions"):
        trainer.step([torch.tensor([1] * 8)], [torch.tensor([1])], [1.0])
