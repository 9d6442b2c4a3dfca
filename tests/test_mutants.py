"""Would the tests notice? One line of the model is changed at a time, and a part of the suite must fail.

Each mutant runs in a forked child, in a copy of the project with that one change: what is imported from elsewhere
(torch, transformers) stays, what is ours is imported anew.
"""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, random_hf
from course import sandbox

MODEL, ARCHITECTURE = "nanoqwenlong/model.py", "nanoqwenlong/pretrained/config.py"
CUDA_STEP = "nanoqwenlong/engine/cuda_step.py"
WEIGHTS = "nanoqwenlong/pretrained/weights.py"
ROPE, MIXTURE = "nanoqwenlong/pretrained/rope.py", "nanoqwenlong/pretrained/mixture.py"
TEMPLATE, TOKENIZER = "nanoqwenlong/pretrained/template.py", "nanoqwenlong/pretrained/tokenizer.py"
PROMPT, FILES = "nanoqwenlong/data/prompt.py", "nanoqwenlong/data/files.py"
BUILD, EVAL = "nanoqwenlong/build.py", "eval.py"
PASSAGES, FORMS = "nanoqwenlong/data/passages.py", "nanoqwenlong/data/formats.py"
PARALLEL, OPTIM, PRECISION = "nanoqwenlong/parallel.py", "nanoqwenlong/optim.py", "nanoqwenlong/ops/precision.py"
RUN, DIRECTORY, CHECKPOINT = (f"nanoqwenlong/ops/{name}.py" for name in ("run", "directory", "checkpoint"))
EVALUATE, TABLES, DOCTOR = (f"nanoqwenlong/analysis/{name}.py" for name in ("evaluate", "tables", "doctor"))
LOGPROB = "kernels/logprob.py"
DYNAMICS, GROUPED = "nanoqwenlong/analysis/step_metrics.py", "kernels/grouped_linear.py"
SECONDS = 600
A, B, C, D, E, F, G, H, I, J, K, L, M, N = "ABCDEFGHIJKLMN"       # the tests that look, in this order
MUTANTS = {
    # Rope
    "rotation the other way": (ROPE, "torch.cat([-b, a], dim=-1)", "torch.cat([b, -a], dim=-1)", A),
    "halves swapped": (ROPE, "torch.cat([-b, a], dim=-1)", "torch.cat([a, -b], dim=-1)", A),
    "pairs side by side": (ROPE, "a, b = x.chunk(2, dim=-1)", "a, b = x[..., ::2], x[..., 1::2]", A),
    "angles side by side": (ROPE, "torch.cat([angles, angles], dim=-1)", "angles.repeat_interleave(2, -1)", A),
    "positions from 1": (ROPE, "positions.to(wide), freq", "positions.to(wide) + 1, freq", A),
    "another exponent of theta": (ROPE, "(steps.to(wide) / head_dim)", "(steps.to(wide) / (head_dim - 2))", A),
    "float64 angles in float32": (ROPE, "wide = torch.promote_types(dtype, torch.float32)", "wide = torch.float32", A),
    "bfloat16 angles in bfloat16": (ROPE, "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype", A),
    "sine for cosine": (ROPE, "angles.cos() * scale", "angles.sin() * scale", A),
    "values rotated": (MODEL, "v = self.v_proj(x).unflatten(-1, self.per_head)",
                       "v = rotate(self.v_proj(x).unflatten(-1, self.per_head), *rope)", A),
    # YaRN
    "scaling left out": (ROPE, "theta, scaling) if scaling else", "theta, scaling) if 0 else", A + B),
    "attention factor on the cosine only": (ROPE, "angles.sin() * scale", "angles.sin() * 1", A + B),
    "attention factor left out": (ROPE, "scaling.attention_factor if scaling else 1.0", "1.0", A + B),
    "the ramp begins too late": (ROPE, "math.floor(low), math.ceil", "math.ceil(low), math.ceil", A + B),
    "the ramp ends too early": (ROPE, "math.floor(low), math.ceil", "math.floor(low), math.floor", A + B),
    "always whole frequencies": (ROPE, "if scaling.truncate:", "if True:", B),
    "never whole frequencies": (ROPE, "if scaling.truncate:", "if False:", A + B),
    "nothing divided by the factor": (ROPE, "(scaling.factor * periods)", "(1 * periods)", A + B),
    "the ramp inverted": (ROPE, "unchanged = 1 - ((ind", "unchanged = 0 + ((ind", A + B),
    "fast and slow swapped": (ROPE, "if scaling.truncate:",
                              "low, high = high, low\n        if scaling.truncate:", A + B),
    "the ramp's end bounded by the frequencies": (ROPE, "2 * len(periods) - 1)", "len(periods) - 1)", B),
    "the ramp's end not bounded": (ROPE, "min(high, 2 * len(periods) - 1)", "high", B),
    "the ramp's begin not bounded": (ROPE, "max(low, 0)", "low", B),
    "a ramp of no width": (ROPE, "high - low or 0.001", "high - low", B),
    "half a turn": (ROPE, "(turns * 2 * math.pi)", "(turns * math.pi)", A + B),
    "theta fixed": (ROPE, "/ math.log(theta)", "/ math.log(1e6)", A + B),
    "frequencies for half the head": (ROPE, "return len(periods) * math.log", "return len(periods) / 2 * math.log",
                                      A + B),
    "the ramp not kept within 0 and 1": (ROPE, "/ width).clamp(0, 1)", "/ width).clamp(0)", A + B),
    # Layers
    "eps left out": (MODEL, "self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)",
                     "self.norm = RMSNorm(c.hidden_size, 0.0)", A),
    "eps of the keys' norm left out": (MODEL, "self.k_norm = RMSNorm(D, c.rms_norm_eps)",
                                       "self.k_norm = RMSNorm(D, 0.0)", A),
    "norm's weight left out": (MODEL, "hidden = self.model.norm(x)",
                               "hidden = F.rms_norm(x, x.shape[-1:], None, self.model.norm.eps)", A),
    "no norm of keys": (MODEL, "k = self.k_norm(k)", "pass", A),
    "no norm of queries": (MODEL, "q = self.q_norm(q)", "pass", A),
    "the keys' norm for queries": (MODEL, "q = self.q_norm(q)", "q = self.k_norm(q)", A),
    "keys rotated, then normalised": (MODEL, "k = self.k_norm(k)\n        k = rotate(k, *rope)",
                                      "k = self.k_norm(rotate(k, *rope))", A),
    "queries rotated, then normalised": (MODEL, "q = self.q_norm(q)\n        q = rotate(q, *rope)",
                                         "q = self.q_norm(rotate(q, *rope))", A),
    "normalised input as the residual": (MODEL, "x = x + attended", "x = self.input_layernorm(x) + attended", A),
    "no residual of attention": (MODEL, "x = x + attended", "x = attended", A),
    "no residual of the MLP": (MODEL, "x = x + self.mlp(", "x = self.mlp(", A),
    "no norm before the MLP": (MODEL, "self.mlp(self.post_attention_layernorm(x))", "self.mlp(x)", A),
    "norms swapped": (MODEL, "self.mlp(self.post_attention_layernorm(x))", "self.mlp(self.input_layernorm(x))", A),
    "no last norm": (MODEL, "hidden = self.model.norm(x)", "hidden = x", A),
    "no biases of queries": (MODEL, "q_size, bias=c.qkv_bias", "q_size, bias=False", A),
    "the output's bias as the keys'": (MODEL, "bias=c.o_bias", "bias=c.qkv_bias", A),
    "not tied": (MODEL, "self.lm_head.weight = self.model.embed_tokens.weight", "pass", A),
    "not tied at first": (MODEL, "self.tie()", "pass", A),
    "not tied again": (WEIGHTS, "model.tie()", "pass", A),
    "gelu": (MODEL, "F.silu(self.gate_proj(x))", "F.gelu(self.gate_proj(x))", A),
    "gate and up swapped": (MODEL, "F.silu(self.gate_proj(x)) * self.up_proj(x)",
                            "F.silu(self.up_proj(x)) * self.gate_proj(x)", A),
    # Experts
    "experts' gate and up swapped": (MIXTURE, "gate, up = grouped_linear", "up, gate = grouped_linear", A),
    "experts with gelu": (MIXTURE, "F.silu(gate) * up * shares", "F.gelu(gate) * up * shares", A),
    "shares left out": (MIXTURE, "F.silu(gate) * up * shares", "F.silu(gate) * up", A),
    "shares on the input": (MIXTURE, "grouped_linear(x, self.gate_up_proj, ends)",
                            "grouped_linear(x * shares, self.gate_up_proj, ends)", A),
    "router's softmax in bfloat16": (MIXTURE, "softmax(-1, dtype=wide)", "softmax(-1)", C),
    "router's softmax in float32": (MIXTURE, "softmax(-1, dtype=wide)", "softmax(-1, dtype=torch.float32)",
                                    A),
    "shares always normalised": (MIXTURE, "if self.normalised:", "if True:", A),
    "shares never normalised": (MIXTURE, "if self.normalised:", "if False:", A),
    "softmax of the chosen only": (
        MIXTURE, "self.gate(x).softmax(-1, dtype=wide).topk(self.k)",
        "(lambda top: (top[0].softmax(-1), top[1]))(self.gate(x).topk(self.k))", A),
    "sigmoid for softmax": (MIXTURE, "softmax(-1, dtype=wide)", "sigmoid()", A),
    "the worst experts": (MIXTURE, ".topk(self.k)", ".topk(self.k, largest=False)", A),
    "shares in the tokens' order": (MIXTURE, "shares.flatten().gather(0, order)", "shares.flatten()", A),
    "groups end a row early": (MIXTURE, "experts, right=True)", "experts, right=False)", A),
    "the permutation for its inverse": (MIXTURE, "F.embedding_bag(place, rows,",
                                        "F.embedding_bag(order.view_as(place), rows,", A),
    "pairs averaged": (MIXTURE, 'mode="sum"', 'mode="mean"', A),
    "no gradient of what experts are given": (MIXTURE, "return Combine.apply(grad, *",
                                              "return 0 * Combine.apply(grad, *", A),
    "no gradient of what they give": (MIXTURE, "return Dispatch.apply(grad, *", "return 0 * Dispatch.apply(grad, *", A),
    "pairs counted the other way": (MIXTURE, "order // place.shape[1])", "order % len(x))", A),
    "an expert fewer": (MIXTURE, "= c.num_experts_per_tok", "= c.num_experts_per_tok - 1 or 1", A),
    "the same mean for all": (MIXTURE, "shares.sum(-1, keepdim=True)", "shares.sum()", A),
    "lone tokens counted": (MIXTURE, "torch.is_grad_enabled() and len(x) > 1", "torch.is_grad_enabled()", C),
    "passes without a gradient counted": (MIXTURE, "torch.is_grad_enabled() and len(x) > 1", "len(x) > 1", C),
    "only the last pass counted": (MIXTURE, "load if self.load is None else self.load + load", "load", C),
    "ends for loads": (MIXTURE, "load = torch.diff(ends, prepend=ends.new_zeros(1))", "load = ends", C),
    "loads never reset": (MIXTURE, "            module.load = None\n", "            pass\n", C),
    "loads of nothing": (MIXTURE, "return loads if any(map(any, loads)) else []", "return loads", C),
    "experts in every layer": (MODEL, "Mixture(c) if c.is_mixture(number)", "Mixture(c) if c.num_experts", A),
    "layouts not told apart": (WEIGHTS, "model.fused_experts = any(", "any(", A),
    "experts without first values": (WEIGHTS, "if parameter.ndim > 1:", "if parameter.ndim == 2:", A + C),
    "graphs of what waits": (CUDA_STEP, "c.num_experts == 0 or is", "True or is", C),
    "what does not wait waits": (CUDA_STEP, "c.num_experts == 0 or is", "is", C),
    # Passes
    "the last layer computed in vain": (MODEL, "if head is None and layer is last:", "if False:",
                                        A),
    "no layer computed for a stem": (MODEL, "if head is None and layer is last:",
                                     "if head is None:", A),
    "no checkpointing": (MODEL, "elif self.checkpointing and torch.is_grad_enabled():", "elif False:", C),
    "rows of a batch see each other": (MODEL, "Packed(range(0, B * T + 1, T))", "Packed([0, B * T])", A),
    "positions go on": (MODEL, "torch.arange(T, device=ids.device).repeat(B)", "torch.arange(B * T)", A),
    "no window": (MODEL, "self.config.require_window(T)", "pass", B),
    # config.json
    "Qwen2 without biases": (ARCHITECTURE, 'kind == "qwen2" or attention_bias', "attention_bias", A),
    "no bias of the output": (ARCHITECTURE, 'kind != "qwen2" and attention_bias', "False", A),
    "mixtures without norms of heads": (ARCHITECTURE, 'qk_norm=kind.startswith("qwen3")', 'qk_norm=kind == "qwen3"', A),
    "Llama with norms of heads": (ARCHITECTURE, 'qk_norm=kind.startswith("qwen3")', 'qk_norm=kind != "qwen2"', A),
    "Llama with biases": (ARCHITECTURE, 'kind == "qwen2" or attention_bias', "not kind.startswith('qwen3')", A),
    "every second layer, from the first": (ARCHITECTURE, "(i + 1) % hf.decoder_sparse_step",
                                           "i % hf.decoder_sparse_step", A),
    "dense layers left out": (ARCHITECTURE, "i in hf.mlp_only_layers or ", "", A),
    "normalised whatever it says": (ARCHITECTURE, "mixture and bool(hf.norm_topk_prob)", "mixture", A),
    "never tied": (ARCHITECTURE, "bool(hf.tie_word_embeddings)", "False", A),
    "heads always share the width": (ARCHITECTURE, 'getattr(hf, "head_dim", None) or hf.hidden_size // H',
                                     "hf.hidden_size // H", A),
    "eps fixed": (ARCHITECTURE, "rms_norm_eps=eps", "rms_norm_eps=1e-6", A),
    "theta fixed in the config": (ARCHITECTURE, 'rope_theta=float(theta)', "rope_theta=1e4", A),
    "scaling not read": (ARCHITECTURE, "if rope_type in SCALED else None", "if 0 else None", A),
    "llama3 as plain rope": (ROPE, 'scaling.rope_type == "llama3"', "False", A + B),
    "no ramp of llama3": (ROPE, "(turns - scaling.slow) / (scaling.fast - scaling.slow or 0.001))",
                          "turns - scaling.slow)", A + B),
    "a ramp of llama3 over periods": (
        ROPE, "((turns - scaling.slow) / (scaling.fast - scaling.slow or 0.001))",
        "((1 / scaling.slow - 1 / turns) / (1 / scaling.slow - 1 / scaling.fast))", A + B),
    "high and low swapped": (ARCHITECTURE, '("low_freq_factor", "high_freq_factor")',
                             '("high_freq_factor", "low_freq_factor")', A + B),
    "llama3 without a ramp": (ROPE, "(scaling.fast - scaling.slow or 0.001)", "(scaling.fast - scaling.slow)", B),
    "YaRN's factor on llama3": (ARCHITECTURE, 'rope.get("attention_factor") if is_yarn else 1.0',
                                'rope.get("attention_factor")', A + B),
    "llama3's ramp not kept within 0 and 1": (ROPE, "or 0.001)).clamp(0, 1)", "or 0.001)).clamp(0)", A + B),
    "a window of llama3's factor": (ARCHITECTURE, 'if self.scaling and self.scaling.rope_type == "yarn" else None',
                                    "", B),
    "YaRN instead of llama3": (ARCHITECTURE, 'if self.scaling and self.scaling.rope_type == "llama3":', "if False:", B),
    "mscale left out": (ARCHITECTURE, "0.1 * m * math.log", "0.1 * math.log", B),
    "mscales swapped": (ARCHITECTURE, "mscale(m) / mscale(m_all)", "mscale(m_all) / mscale(m)", B),
    "mscale alone": (ARCHITECTURE, "if m and m_all else", "if m else", B),
    "attention factor not read": (ARCHITECTURE, 'rope.get("attention_factor") if is_yarn', "None if is_yarn", B),
    "truncate not read": (ARCHITECTURE, 'truncate = rope.get("truncate", True)', "truncate = True", B),
    "another default of beta_fast": (ARCHITECTURE, "fast or 32", "fast or 30", B),
    "another default of beta_slow": (ARCHITECTURE, "slow or 1,", "slow or 2,", B),
    "fast may be slower than slow": (ARCHITECTURE, "require(slow <= fast,", "require(True,", B),
    "the source edited": (ARCHITECTURE, "copy.deepcopy({", "dict({", B),
    "window without yarn": (ARCHITECTURE, "return max(self.max_position_embeddings, stretched)",
                            "return self.max_position_embeddings", B),
    "window of yarn only": (ARCHITECTURE, "return max(self.max_position_embeddings, stretched)",
                            "return stretched or self.max_position_embeddings", B),
    "a token less": (ARCHITECTURE, "if tokens <= self.window:", "if tokens < self.window:", B),
    "too small a factor": (ARCHITECTURE, "float(-(-tokens // original))", "float(tokens // original)", B),
    "the room for answers stretched too": (
        ARCHITECTURE, "2 ** int(math.log2(self.max_position_embeddings))", "self.max_position_embeddings", B),
    "always the new spelling": (ARCHITECTURE, 'new = "rope_parameters" in self.source', "new = True", B),
    "more experts than there are": (ARCHITECTURE, "(k <= num_experts,", "(True,", C),
    # Files
    "gate and up swapped in the file": (WEIGHTS, 'match[2].split("_")', 'match[2].split("_")[::-1]', A),
    "each rank reads all experts": (WEIGHTS, "range(shape[0])[wanted]", "range(shape[0])", C),
    "a rank without experts": (WEIGHTS, " if experts else torch.empty(0, *shape[1:])", "", C),
    "always one by one": (WEIGHTS, "whole if fused_experts else take_apart(whole)", "take_apart(whole)", C),
    "never one by one": (WEIGHTS, "whole if fused_experts else take_apart(whole)", "whole", C),
    "always told to be fused": (WEIGHTS, "any(map(experts_apart, stored.files))", "True", A),
    # Prompt templates and tokenizers
    "a field may stand twice": (TEMPLATE, "!= 1:", "< 1:", E),
    "line ends kept": (TEMPLATE, '.rstrip("\\n")', "", E),
    "a byte order mark kept": (TEMPLATE, "utf-8-sig", "utf-8", E),
    "always the document first": (TOKENIZER, "return sorted(FIELDS, key=", "return sorted(FIELDS) or (", E),
    "the first text cut": (PROMPT, '[1 + 2 * tokenizer.prompt_fields.index("document")]', "[1]", E),
    "a checkpoint without its template": (TOKENIZER, ", self.files[TEMPLATE] = text, text.encode()", " = text", E),
    "a template in a directory not read": (TOKENIZER, "if TEMPLATE in self.files else", "if False else", E),
    "the flag not used": (BUILD, "tokenizer.use_template(prompt_template)", "pass", E),
    "answers to any template": (EVAL, '"seed",\n            "prompt_template")', '"seed")', E),
    "a space before contents": (TOKENIZER, "continued != plain", "continued == 0", F),
    "a normaliser's space kept": (TOKENIZER, 'part.get("type") == "Prepend"', "False", F),
    "a splitter's space kept": (TOKENIZER, '"prepend_scheme": "never"', '"prepend_scheme": "always"', F),
    "no space after a special token": (TOKENIZER, "match.start() if match else len(text)", "len(text)", F),
    "a template without its question": (TEMPLATE, 'FIELDS = ("document", "question")', 'FIELDS = ("document",)', E),
    "the name of a template recorded": (RUN, "prompt_template=read_template(cfg.prompt_template)",
                                        "prompt_template=cfg.prompt_template", E),
    # Question-answering sets
    "needed paragraphs removed too": (PASSAGES, "if paragraph.needed is False]", "if not paragraph.needed]", G),
    "what is needed removed": (PASSAGES, "if paragraph.needed is False]", "if paragraph.needed]", G),
    "the last distractors stay": (PASSAGES, "others[max(0, len(others) + most - len(paragraphs)):] if most",
                                  "others[:len(paragraphs) - most] if most and most < len(paragraphs)", G),
    "needed ones not counted": (PASSAGES, "others[max(0, len(others) + most - len(paragraphs)):]", "others[most:]", G),
    "0 removes all": (PASSAGES, "- len(paragraphs)):] if most else []", "- len(paragraphs)):]", G),
    "facts not read": (PASSAGES, "[title in needed] if needed else", "", G),
    "one mark of several decides": (PASSAGES, "any(marks) if marks else None", "all(marks) if marks else None", G),
    "unmarked means unneeded": (PASSAGES, "any(marks) if marks else None", "any(marks)", G),
    "titles left out": (PASSAGES, 'f"{title}\\n{text}" if title else text for', "text for", G),
    "titles on the line of the text": (PASSAGES, 'f"{title}\\n{text}" if title', 'f"{title} {text}" if title', G),
    "paragraphs run together": (PASSAGES, '"\\n\\n" if any(paragraph.title', '"\\n" if any(paragraph.title', G),
    "sentences not stripped": (PASSAGES, "check(sentence, str, f\"{place}.{field}\").strip()",
                               "check(sentence, str, f\"{place}.{field}\")", G),
    "passages of KILT twice": (PASSAGES, "list(dict.fromkeys(read(", "list((read(", G),
    "impossible questions asked": (FORMS, 'row.get("is_impossible") is True or ', "", G),
    "MuSiQue's unanswerable asked": (FORMS, ' or row.get("answerable") is False', "", G),
    "no answer on the hub is an error": (FORMS, ' or no_texts:', ":", G),
    "unanswerable ones are bad rows": (FILES, 'counts["unanswerable"] += 1\n            except',
                                       "raise\n            except", G),
    "aliases not accepted": (FORMS, 'ANSWERS = ("answer", "answers", "answer_aliases")',
                             'ANSWERS = ("answer", "answers")', G),
    "an answer of punctuation kept": (FORMS, "usable = [answer for answer in problems if not problems[answer]]",
                                      "usable = [*problems]", G),
    "RULER is always F1": (FORMS, "len(outputs) > 1 and RULER_QA not in prompt", "True", G),
    "RULER's lists take any item": (FORMS, "len(outputs) > 1 and RULER_QA not in prompt", "False", G),
    "RULER's answers all needed": (FORMS, "len(outputs) > 1 and RULER_QA not in prompt", "len(outputs) > 1", G),
    "underscores in titles": (FORMS, '.replace("_", " ")', "", G),
    "every document counted as long": (FORMS, "not 0 < len(paragraphs) <= max_paragraphs",
                                       "not 0 < len(paragraphs) < max_paragraphs", G),
    "documents of one text not counted": (FORMS, "not 0 < len(paragraphs) <= max_paragraphs",
                                          "not len(paragraphs) <= max_paragraphs", G),
    "a row for an article": (FILES, 'f"data[{i}].paragraphs[{j}].qas[{k}]"', 'f"data[{i}].paragraphs[{j}]"', G),
    # Copies in bfloat16
    "copies never renewed": (OPTIM, "optimizer.register_step_post_hook(", "(lambda hook: 0)(", H),
    "copies of their own for tied weights": (PARALLEL, "copies[weight] if weight in copies else weight.to(dtype)",
                                             "weight.to(dtype)", H),
    "tied copies renewed, one only": (PARALLEL, "for name, weight in module.named_parameters(recurse=False):\n"
                                      "            if name in module.__dict__",
                                      "for name, weight in list(module.named_parameters(recurse=False))[1:]:\n"
                                      "            if name in module.__dict__", H),
    "copies of what has the dtype": (PARALLEL, "if weight.dtype != dtype and not", "if not", H),
    "weights replaced by copies": (PARALLEL, "module.__dict__[name] = copies[weight]",
                                   "module._parameters[name] = torch.nn.Parameter(copies[weight])", H),
    "copies cut from their weights": (PARALLEL, "copies[weight] if weight in copies else weight.to(dtype)",
                                      "copies[weight] if weight in copies else weight.detach().to(dtype)", H),
    "narrow models measured": (PRECISION, "if width < WIDE:", "if False:", H),
    "512 is narrow": (PRECISION, "if width < WIDE:", "if width <= WIDE:", H),
    "a little faster is enough": (PRECISION, "CLEARLY = 1.5", "CLEARLY = 1.3", H),
    "each rank decides alone": (PRECISION, "parallel.gather(parallel.rank() == 0 and bfloat16_speed())[0]",
                                "bfloat16_speed()", H),
    "a decision made again": (DIRECTORY, 'self.settings["dtype"] = settings.get("dtype", "auto")', "pass", H),
    "a given dtype questioned": (RUN, 'if settings["dtype"] == "auto" and', "if", H),
    "auto recorded": (RUN, 'settings["dtype"] = str(self.dtype).removeprefix("torch.")', "pass", H),
    "weights in bfloat16": (RUN, "torch.promote_types(self.dtype, torch.float32)", "self.dtype", H),
    "KL to the checkpoint": (BUILD, "return Qwen.from_pretrained(cfg.model, run.dtype",
                             "return Qwen.from_pretrained(run.source or cfg.model, run.dtype", N),
    "a step on another device": (CHECKPOINT, "torch.as_tensor(piece[...]).to(parameter.device)",
                                 "torch.as_tensor(piece[...])", M),
    # Blocks of the head
    "a target in each block": (LOGPROB, "torch.where(holds, logprob + log_sums + falls, 0.0).sum(0)",
                               "(logprob + log_sums + falls).sum(0)", I),
    "targets at a border lost": (LOGPROB, "(words.start <= y)", "(words.start < y)", I),
    "targets at a border twice": (LOGPROB, "(y < words.stop)", "(y <= words.stop)", I),
    "tops of blocks not told apart": (LOGPROB, "falls = tops - top\n", "falls = 0 * (tops - top)\n", I),
    "the first block's top": (LOGPROB, "top = tops.amax(0)", "top = tops[0]", I),
    "target without its fall": (LOGPROB, "logprob + log_sums + falls,", "logprob + log_sums,", I),
    "entropies averaged": (LOGPROB, "share * (logs - entropy)", "share * (log_sums - entropy)", I),
    "sums of blocks not merged": (LOGPROB, "log_sum = logs.logsumexp(0)", "log_sum = logs.amax(0)", I),
    "targets counted from the vocabulary": (LOGPROB, "statistics(logits, y - words.start, part)",
                                            "statistics(logits, y, part)", I),
    "gradients of another block's target": (LOGPROB, "torch.where(targets == words, d_logprob, 0.0)", "d_logprob", I),
    "gradients of the last words only": (LOGPROB, "add = words.stop < len(weight) or some.start > 0",
                                         "add = some.start > 0", I),
    "widened pieces not added": (LOGPROB, "add = words.stop < len(weight) or some.start > 0",
                                 "add = words.stop < len(weight)", I),
    "gradients of the last positions only": (LOGPROB, "add=piece.stop < len(h))", "add=False)", I),
    "what is ready stays so": (LOGPROB, "            is_ready = False\n", "            pass\n", I),
    "blocks forwards": (LOGPROB, "reversed(list(product(ctx.positions, ctx.words)))",
                        "list(product(ctx.positions, ctx.words))", I),
    "pieces of no row": (LOGPROB, "    size = max(1, size)\n", "", I),
    # What became of answers
    "truncated, although right": (EVALUATE, "if score.reward == 1:",
                                  'if score.reward == 1 and answer.finish_reason != "length":', J),
    "truncated, although partly right": (EVALUATE, "if score.reward > 0:",
                                         'if score.reward > 0 and answer.finish_reason != "length":', J),
    "no verdict is wrong": (EVALUATE, "if isnan(score.reward):", "if False:", J),
    "partly right is right": (EVALUATE, 'return "partly_right"', 'return "right"', J),
    "truncated only without an answer": (EVALUATE, 'if answer.finish_reason == "length":',
                                         'if answer.finish_reason == "length" and not score.answer:', J),
    "thinking without an end is no answer": (EVALUATE, "if said(answer.text) is None:", "if False:", J),
    "no answer is wrong": (EVALUATE, '"wrong" if score.answer else "no_answer"', '"wrong"', J),
    "kinds that no answer has": (TABLES, 'if name in ("right", "wrong") or any(cell[name] for cell in cells)', "", J),
    # The doctor
    "a gap of an error only": (DOCTOR, 'gap(0.2), "sampler', 'gap(0.5), "sampler', K),
    "every gap is an error": (DOCTOR, 'gap(0.5), "sampler', 'gap(0.2), "sampler', K),
    "one token decides": (DOCTOR, '(level := median(measured(rows, "rollout_gap") or [0]))',
                          '(level := max(measured(rows, "rollout_gap") or [0]))', K),
    # Llamas that are refused
    "biases of MLPs passed over": (ARCHITECTURE, 'not getattr(hf, "mlp_bias", False)', "True", L),
    "rope by pairs passed over": (ARCHITECTURE, 'not source.get("rope_interleaved")', "True", L),
    "frequencies in old files refused": (WEIGHTS, 'if name.endswith("rotary_emb.inv_freq"):', "if False:", L),
    "all that ends like weights passed over": (WEIGHTS, 'if name.endswith("rotary_emb.inv_freq"):', "if True:", L),
    "other ropes as plain ones": (ARCHITECTURE, '(rope_type in ("default", *SCALED),', "(True,", L),
    "llama3 without its ramp's ends": (ARCHITECTURE, 'options = YARN_OPTIONS if is_yarn else ()',
                                       "options = (*YARN_OPTIONS, *names)", B),
    # Loads
    "one mean over all layers": (DYNAMICS, "(loads.amax(-1) / loads.mean(-1))", "(loads.amax() / loads.mean())", C),
    "unused if rarely used": (DYNAMICS, "(loads == 0)", "(loads <= 2)", C),
    "layers without tokens told": (DYNAMICS, "loads = loads[loads.any(-1)]", "pass", C),
    # grouped_linear
    "a gradient as it lies": (GROUPED, "grad = grad.contiguous()", "pass", D),
    "the other path backward": (GROUPED, "if ctx.grouped else (rows_plain", "if not ctx.grouped else (rows_plain", D),
    "rows counted from the first end": (GROUPED, "weight.shape[2])\n    start = 0",
                                        "weight.shape[2])\n    start = ends[0]", D),
    "weights counted from the first end": (GROUPED, "x.shape[1])\n    start = 0", "x.shape[1])\n    start = ends[0]",
                                           D),
    "rows of 8 bytes": (GROUPED, "width * dtype.itemsize % 16", "width * dtype.itemsize % 8", D),
    "grouped_mm everywhere": (GROUPED, "if grouped is None:", "grouped = True\n    if False:", D),
    "a gradient nobody wants": (GROUPED, "if ctx.needs_input_grad[0] else None", "if True else None", D),
    "another one": (GROUPED, "if ctx.needs_input_grad[1] else None", "if True else None", D),
    "the weight not transposed": (GROUPED, "rows_plain(x, weight.mT, ends)", "rows_plain(x, weight, ends)", D),
}
EQUIVALENT = {
    "an order within an expert": (MIXTURE, "sort(stable=True)", "sort()"),       # each row is put back where it belongs
    "mscale of a factor of 1": (ARCHITECTURE, ' if factor > 1 else 1.0', ""),           # ln 1 is 0
    # a defect of some GPUs
    "empty groups masked": (GROUPED, ".masked_fill_((sizes == 0)[:, None, None], 0)", ""),
    # steeper than 1 per frequency
    "another small width of a ramp without one": (ROPE, "high - low or 0.001", "high - low or 0.002"),
}
TESTS = {A: "test_model.py", B: "test_yarn.py", C: "test_mixture.py", D: "test_grouped_linear.py",
         E: "test_template.py", F: "test_tokenizer.py", G: "test_qa_sets.py", H: "test_precision.py",
         I: "test_kernels.py", J: "test_tables.py", K: "test_doctor.py", L: "test_weights.py",
         M: "test_checkpoint.py::test_state_of_an_optimizer_that_was_not_fused",
         N: "test_kill.py::test_a_mixture_in_bfloat16_with_a_reference_goes_on_to_the_same_end"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project, and what the children need from elsewhere imported."""
    directory = sandbox.copy_project(tmp_path_factory.mktemp("mutants"))
    for kind in ("qwen2", "qwen3", "qwen3_moe", "llama"):
        hf = random_hf(kind)
        hf(torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
        hf.save_pretrained(directory / kind)
    return directory


def run_tests(tree: Path, names: str) -> tuple[int, list[str]]:
    """pytest's exit code in a child that works in the copy, and the tests that failed."""
    arguments = ["-x", "-c", "pyproject.toml", "-p", "no:cacheprovider", "--assert=plain"]
    arguments += [f"tests/{file}" for name, file in TESTS.items() if name in names]
    outcome = sandbox.run(lambda send: send(pytest.main(arguments)), tree, SECONDS, gigabytes=16)
    assert not outcome.ended, f"{outcome.ended}: {outcome.printed[-3000:]}"
    (code,) = outcome.events
    failed = [line for line in outcome.printed.splitlines() if line.startswith("FAILED")]
    assert code == pytest.ExitCode.OK or code == pytest.ExitCode.TESTS_FAILED and failed, outcome.printed[-3000:]
    return code, failed


def test_every_mutant_changes_one_place():
    """Or the table has been left behind by the code."""
    for name, (file, old, new, *_) in (MUTANTS | EQUIVALENT).items():
        assert old != new and (ROOT / file).read_text().count(old) == 1, f"{name}: {old!r} in {file}"


@pytest.mark.full
def test_without_a_mutant_all_pass(tree):
    assert run_tests(tree, "".join(TESTS)) == (0, [])


@pytest.mark.full
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name, tree):
    file, old, new, tests = MUTANTS[name]
    text = (ROOT / file).read_text()
    (tree / file).write_text(text.replace(old, new))
    try:
        code, failed = run_tests(tree, tests)
    finally:
        (tree / file).write_text(text)
    print(*failed)
    assert failed, f"survived: {old!r} -> {new!r}"
