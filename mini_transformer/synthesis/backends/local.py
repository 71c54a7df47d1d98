"""The model on this machine, through `transformers`: whole batches, every sample from its own seed."""

import math
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from jinja2 import TemplateError
from torch import Tensor
from transformers.utils import logging

from mini_transformer.errors import UserError
from mini_transformer.runtime import describe_device, pick_device, pick_precision
from mini_transformer.synthesis.backends import Output, Task
from mini_transformer.synthesis.config import SynthesisConfig, check_packages

# How devices other than CUDA say it.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class SeededSampling(transformers.LogitsProcessor):
    """Gumbel noise makes the likeliest token a sampled one; it depends on its row's seed alone, not on neighbours."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waiting = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in enumerate(self._generators):
            waiting[row].exponential_(generator=generator)
        return scores.float() - waiting.log()


class LocalEngine:
    """An `Engine` on this machine. Raises `UserError` if the model or what it needs is not there."""

    def __init__(self, config: SynthesisConfig, log: Callable[[str], None]) -> None:
        """`log` prints a line for people."""
        self.concurrency = config.batch
        self._config, self._log, self._warned = config, log, False
        self._device = pick_device(config.device, config.gpu, "gpu")
        precision = pick_precision("auto", self._device, width=0)  # on a CPU float32
        self.place = f"{describe_device(self._device)}, {config.quantize or str(precision).removeprefix('torch.')}"
        logging.set_verbosity_error()
        if not os.isatty(2):
            logging.disable_progress_bar()
        self._tokenizer, self._model = _load(config, self._device, precision)
        ends = self._model.generation_config.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id} - {None}
        for there, lacks in (
            (self._tokenizer.encode("Une fable"), "has no tokenizer; copy its tokenizer.json beside the weights"),
            (self._tokenizer.chat_template, "has no chat template; an instruct model is needed"),
            (self._ends, "names no token that ends an answer (eos_token_id)"),
        ):
            if not there:
                raise UserError(f"`model`: {config.model} {lacks}")
        self._chat("system", "prompt")  # raises now rather than in the middle of the work
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # The processors sample, row by row. What else the model asks for, such as a penalty of repetitions, stays.
        stop = dict(eos_token_id=sorted(self._ends), pad_token_id=self._tokenizer.pad_token_id)
        self._model.generation_config.update(do_sample=False, max_new_tokens=config.max_new_tokens, **stop)

    def generate(self, tasks: Sequence[Task]) -> list[Output]:
        """Write all tasks; where memory does not suffice, in halves of the batch from then on."""
        outputs: list[Output] = []
        while len(outputs) < len(tasks):
            chunk = tasks[len(outputs) : len(outputs) + self.concurrency]
            try:
                outputs += self._generate(chunk)
                continue
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            torch.cuda.empty_cache()  # outside of the `except`, whose error holds on to the memory
            if len(chunk) == 1:
                advice = "lower `max_new_tokens`, take `quantize` 4bit or a smaller `model`"
                raise UserError(f"out of memory on {self._device} with a single sample: {advice}")
            self.concurrency = len(chunk) // 2
            self._log(f"Out of memory on {self._device}: the batch is halved to {self.concurrency}")
        return outputs

    def close(self) -> None:
        """Nothing outlives the process."""

    def _generate(self, tasks: Sequence[Task]) -> list[Output]:
        chats = [self._chat(task.prompt.system, task.prompt.text) for task in tasks]
        how = dict(return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
        prompts = self._tokenizer(chats, **how).to(self._device)
        length, most = prompts["input_ids"].shape[1], self._config.max_new_tokens
        positions = getattr(self._model.config, "max_position_embeddings", None) or math.inf
        if length + most > positions and not self._warned:
            self._warned = True
            beyond = f"the {positions} positions that {self._config.model} was made for"
            self._log(f"Warning: a prompt of {length} tokens and --max-new-tokens {most} go beyond {beyond}")
        processors = transformers.LogitsProcessorList()
        if self._config.temperature > 0:
            processors.append(transformers.TemperatureLogitsWarper(self._config.temperature))
            processors.append(transformers.TopPLogitsWarper(self._config.top_p))
            processors.append(SeededSampling([task.seed for task in tasks], self._device))
        with torch.inference_mode():
            sequences = self._model.generate(**prompts, logits_processor=processors)
        return [self._output(task, row) for task, row in zip(tasks, sequences[:, length:].tolist(), strict=True)]

    def _chat(self, system: str, text: str) -> str:
        both = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        for messages in (both, [{"role": "user", "content": f"{system}\n\n{text}"}]):  # some know no system role
            try:
                return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except (TemplateError, TypeError) as error:
                reason = _one_line(error)
        raise UserError(f"`model`: the chat template of {self._config.model} does not work: {reason}")

    def _output(self, task: Task, tokens: list[int]) -> Output:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Output(task, text, len(tokens) if end is None else end, end is not None)


def _load(config: SynthesisConfig, device: torch.device, precision: torch.dtype) -> tuple[Any, Any]:
    """The tokenizer and the model. Raises `UserError` if they cannot be loaded, or not in 4 bits."""
    name, choices = config.model, dict[str, Any](dtype=precision)
    if config.quantize:
        if device.type != "cuda":
            raise UserError(f"`quantize` 4bit: needs an NVIDIA GPU, and this runs on {device}; leave `quantize` out")
        check_packages("bitsandbytes", "accelerate", source="bitsandbytes accelerate")
        nf4 = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precision)
        choices["quantization_config"] = transformers.BitsAndBytesConfig(load_in_4bit=True, **nf4)
        choices["device_map"] = {"": device}
    from_cache = not Path(name).is_dir() and _must_be_cached(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=from_cache)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, local_files_only=from_cache, **choices)
        return tokenizer, (model if config.quantize else model.to(device)).eval()
    except Exception as error:  # whatever the libraries make of a folder with damaged or missing files
        sizes = "ignore_mismatched_sizes" in str(error)  # a setting that is not ours
        reason = "its weights do not have the sizes that its config.json tells" if sizes else _one_line(error)
        problem = f"`model`: {name} cannot be loaded: {reason}"
        if _is_out_of_memory(error):
            problem = f"out of memory on {device} while loading {name}: try `quantize` 4bit, or a smaller `model`"
        elif from_cache and isinstance(error, (OSError, ValueError)):
            problem = f"`model`: {name} is not in the cache of this machine, and the Hub cannot be reached; with a "
            problem += f"network, `hf download {name}` fetches it; without, copy its folder here and name it: "
            problem += "`model` FOLDER"
        raise UserError(problem) from None


def _must_be_cached(name: str) -> bool:
    """Whether the Hub is out of reach. Raises `UserError` if it has no such model."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"`model`: {name}: there is no such folder")
    try:
        HfApi().model_info(name, timeout=10)  # asking first is quicker than the many retries of a download
    except RepositoryNotFoundError:
        raise UserError(f"`model`: {name} is not on the Hub (or needs a login: `hf auth login`)") from None
    except Exception:  # no network, a proxy, an offline setting: the cache decides
        return True
    return False


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def _one_line(error: Exception) -> str:
    """The reason in one line, and without backticks: those stand around names of settings."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...").replace("`", "'")
