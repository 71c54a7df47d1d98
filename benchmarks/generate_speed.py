"""Writing one text on a CPU in float32: tokens per second by each way, beside `transformers` and the memory's limit.

    python benchmarks/generate_speed.py [--repeats 5] [--shapes 4x128 4x192 24x512] [--json FILE]

Random weights, 4 experts, 2 per token, 1,024 tokens in the vocabulary. Every way writes as many tokens within the
block, from one token on, drawn at temperature 0.8; the ways take turns. "without end" is what the engine writes while
its context is filled anew once in half a block. The limit is the time of reading as many bytes as a step reads
weights, with NumPy in all threads: from memory or, in a small model, from the cache. "numba" needs numba, "llama.cpp"
`pip install llama-cpp-python`: the same weights as GGUF, with its own sampling, by its C functions and by the Python
package's generator. Weights are float32, unless bfloat16 is said.

With --device cuda, the model's own step and its CUDA graph, for 1, 16 and 64 rows, beside `transformers` with one.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_transformer.config import ModelConfig, SamplingConfig
from mini_transformer.export.gguf import write_gguf
from mini_transformer.generation.decoding import Step, generate_tokens, make_cache, make_step, model_step
from mini_transformer.generation.sampling import sample
from mini_transformer.generation.single_row import SingleRow
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder, round_matrices
from mini_transformer.model.pretrained import export_weights, write_config, write_weights
from mini_transformer.text.tokenizer import Tokenizer

VOCABULARY, ROWS, SAMPLING = 1024, 32, SamplingConfig(0.8)
Way = Callable[[int], float]  # the seconds for so many tokens


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def with_model(model: Decoder) -> Way:
    """The model's own step, and the same sampling."""

    @torch.inference_mode()
    def write(tokens: int) -> None:
        token, cache, generator = 0, make_cache(model, 1), np.random.default_rng(1)
        for _ in range(tokens):
            ids = torch.tensor([[token]], device=cache.keys.device)
            token = sample(model(ids, cache)[0, -1].cpu().numpy(), SAMPLING, generator)

    return lambda tokens: seconds(lambda: write(tokens))


def with_step(cache: KVCache, step: Step) -> Way:
    """A step for all rows of its cache, whose tokens are counted together."""

    def write(tokens: int) -> None:
        ids, generator = [0] * len(cache.lengths), np.random.default_rng(1)
        cache.lengths = [0] * len(ids)
        for _ in range(tokens // len(ids)):
            ids = [sample(logits_v, SAMPLING, generator) for logits_v in step(ids)]

    return lambda tokens: seconds(lambda: write(tokens))


def with_transformers(folder: Path, device: str = "cpu", rows: int = 1) -> Way:
    """The exported folder in `transformers`; the tokens of all rows are counted together."""
    from transformers import GptOssForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = GptOssForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().to(device)
    prompt = torch.zeros((rows, 1), dtype=torch.int64, device=device)
    settings = {"do_sample": True, "temperature": SAMPLING.temperature, "top_k": 0, "suppress_tokens": None}

    def write(tokens: int) -> None:
        count = tokens // rows
        model.generate(prompt, min_new_tokens=count, max_new_tokens=count, eos_token_id=None, **settings)

    return lambda tokens: seconds(lambda: write(tokens))


@cache
def silence(callback: Callable[..., Any]) -> Any:
    """A function for llama.cpp's log; it must live as long as the process."""
    return callback(lambda *_: None)


def with_llama_cpp(file: Path, block_size: int, rows: int) -> Way:
    """The GGUF file in llama.cpp, by its C functions, with as many threads as torch has."""
    import llama_cpp as lib

    lib.llama_backend_init()
    lib.llama_log_set(silence(lib.llama_log_callback), None)
    model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = block_size * rows, rows
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    context = lib.llama_init_from_model(model, settings) if model else None
    if context is None:
        raise RuntimeError("llama.cpp does not open the file")
    sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_temp(SAMPLING.temperature))
    lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_dist(1))
    batch = lib.llama_batch_init(rows, 0, 1)

    def write(tokens: int) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        ids, batch.n_tokens = [0] * rows, rows
        for position in range(tokens // rows):
            for row, i in enumerate(ids):
                batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = i, position, 1, True
                batch.seq_id[row][0] = row
            if lib.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            ids = [lib.llama_sampler_sample(sampler, context, row) for row in range(rows)]

    return lambda tokens: seconds(lambda: write(tokens))


def with_llama_cpp_python(file: Path) -> Way:
    """The same through the generator of its Python package."""
    from llama_cpp import Llama

    llama = Llama(str(file), n_ctx=0, n_threads=torch.get_num_threads(), verbose=False)

    def write(tokens: int) -> None:
        llama.reset()
        list(islice(llama.generate([0], top_k=0, top_p=1, min_p=0, temp=SAMPLING.temperature), tokens))

    return lambda tokens: seconds(lambda: write(tokens))


def reading(size: int) -> Way:
    """Reading `size` bytes for each token, in as many threads as torch has, by the faster of two functions."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    parts = [np.ones(size // 4 // threads, np.float32) for _ in range(threads)]

    def read(function: Callable[..., object], tokens: int) -> None:
        for _ in range(tokens):
            list(pool.map(function, parts))

    return lambda tokens: min(seconds(lambda: read(function, tokens)) for function in (np.max, np.sum))  # noqa: B023


def sampling_alone(model: Decoder) -> Way:
    """Drawing tokens from logits that are there."""
    logits_v, generator = SingleRow(model, make_cache(model, 1)).step(0), np.random.default_rng(1)
    return lambda tokens: seconds(lambda: [sample(logits_v, SAMPLING, generator) for _ in range(tokens)])


def without_end(model: Decoder, expected: int | None) -> Way:
    """The engine, from the middle of a block's last half on; `expected` tokens decide between NumPy and numba."""
    prompt = [0] * (model.config.block_size * 3 // 4)

    def write(tokens: int) -> float:
        stream = generate_tokens(model, [prompt], SAMPLING, [np.random.default_rng(1)], [], expected)
        next(stream)
        return seconds(lambda: list(islice(stream, tokens)))

    return write


def ways_on_a_gpu(model: Decoder, folder: Path) -> dict[str, tuple[Way, int]]:
    """The ways on a GPU, and how many tokens each writes."""
    model.cuda()
    ways: dict[str, tuple[Way, int]] = {"transformers": (with_transformers(folder, "cuda"), 100)}
    for rows in (1, 16, 64):
        cache = make_cache(model, rows)
        words = "" if rows == 1 else f", {rows} rows"
        ways[f"model{words}"] = (with_step(cache, model_step(model, cache)), 100 * rows)
        ways[f"CUDA graph{words}"] = (with_step(cache, make_step(model, cache, 100)), 100 * rows)
    return ways


def measure(shape: str, repeats: int, folder: Path, device: str) -> dict[str, list[float]]:
    """Tokens per second of each way, several times."""
    layers, width = map(int, shape.split("x"))
    torch.manual_seed(1)
    model = Decoder(ModelConfig(n_layer=layers, n_embd=width, n_head=max(4, width // 64)).resolve(VOCABULARY)).eval()
    write_weights(folder, export_weights(model.state_dict()))
    write_config(folder, model.config, 0, [], {})
    if device == "cuda":
        return report(shape, ways_on_a_gpu(model, folder), repeats)
    size = 4 * (model.parameter_counts()[1] - model.embed_tokens.weight.numel())  # of the embedding one row is read
    few, many = (20, 40) if size > 1e8 else (200, 250)
    half = model.config.block_size // 2
    cache, batch = make_cache(model, 1), make_cache(model, ROWS)
    ways: dict[str, tuple[Way, int]] = {  # and how many tokens it writes
        "limit": (reading(size), few),
        "transformers": (with_transformers(folder), few),
        "model": (with_model(model), few),
        "NumPy": (with_step(cache, make_step(model, cache, 1)), many),
        "NumPy, without end": (without_end(model, None), half),
        f"transformers, {ROWS} rows": (with_transformers(folder, rows=ROWS), ROWS * few),
        f"model, {ROWS} rows": (with_step(batch, model_step(model, batch)), ROWS * few),
        "sampling alone": (sampling_alone(model), many),
    }
    if find_spec("numba"):
        ways["numba"] = (with_step(cache, make_step(model, cache, 10**9)), many)
        ways[f"numba, {ROWS} rows"] = (with_step(batch, make_step(model, batch, 10**9)), ROWS * few)
        ways["numba, without end"] = (without_end(model, 10**9), half)
        short = copy.deepcopy(model)
        round_matrices(short)
        ways["numba, bfloat16"] = (with_step(cache, make_step(short, cache, 10**9)), many)
        ways[f"numba, bfloat16, {ROWS} rows"] = (with_step(batch, make_step(short, batch, 10**9)), ROWS * few)
    if find_spec("llama_cpp"):
        for kind, name in {"f32": "llama.cpp", "bf16": "llama.cpp, bfloat16"}.items():
            file, tokenizer = folder / f"{kind}.gguf", Tokenizer.from_characters([])
            write_gguf(file, model.config, tokenizer, model.state_dict(), kind)
            ways[name] = (with_llama_cpp(file, model.config.block_size, 1), many)
            ways[f"{name}, {ROWS} rows"] = (with_llama_cpp(file, model.config.block_size, ROWS), ROWS * few)
        ways["llama-cpp-python"] = (with_llama_cpp_python(folder / "f32.gguf"), many)
    print(f"\n{shape}: a step reads {size / 1e6:.1f} MB")
    return report(shape, ways, repeats)


def report(shape: str, ways: dict[str, tuple[Way, int]], repeats: int) -> dict[str, list[float]]:
    """Let the ways take turns, and print their table."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for name, (way, tokens) in ways.items():
            way(tokens)  # to warm up, while the threads of the way before end their spinning
            speeds[name].append(tokens / way(tokens))
    limit = statistics.median(speeds["limit"]) if "limit" in speeds else None
    print(f"\n| {shape} | tokens/s, median (range) |" + " of the limit |" * (limit is not None))
    print("|---|---|" + "---|" * (limit is not None))
    for name, values in speeds.items():
        middle, spread = statistics.median(values), f"{min(values):,.0f} to {max(values):,.0f}"
        share = f" {middle / limit:.0%} |" if limit else ""
        print(f"| {name} | {middle:,.0f} ({spread}) |{share}", flush=True)
    return speeds


def main() -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=["4x128", "4x192", "24x512"], metavar="LAYERSxWIDTH")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=Path("generate_speed.json"))
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    if given.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"
    print(f"{machine}; {versions}; {torch.get_num_threads()} threads; {given.repeats} repeats")
    speeds = {}
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as folder:
            speeds[shape] = measure(shape, given.repeats, Path(folder), given.device)
    result = {"machine": machine, "versions": versions, "tokens_per_second": speeds}
    given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
