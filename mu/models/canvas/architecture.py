"""Untrained models of a small world: stock classes, small sizes. Canvas has at most 24 MB in half precision."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
)

from mu.data.canvas import CANVAS, SIZE, World

EMBEDDING_WIDTH = 128


@dataclass(frozen=True)
class Sizes:
    """Widths, depths, schedule and prediction of a world's models. The defaults are canvas's."""

    text_width: int = 192  # so that null spaces of ten or more prompts of 16 tokens exist
    text_layers: int = 3
    tokens: int = 16
    patch: int = 8
    unet: tuple[int, ...] = (64, 128)
    prediction: str = "epsilon"
    beta_schedule: str = "scaled_linear"
    beta_end: float = 0.012
    guidance: float = 4.0

    @classmethod
    def drawn(cls, seed: int) -> Sizes:
        """Sizes of the sibling world of ``seed``."""
        rng = np.random.default_rng((seed, 20_162))
        return cls(
            text_width=int(rng.choice([128, 160, 224])),
            text_layers=int(rng.integers(2, 5)),
            tokens=int(rng.choice([12, 14, 20])),
            patch=16,
            prediction=("epsilon", "v_prediction")[seed % 2],
            beta_schedule=str(rng.choice(["scaled_linear", "linear"])),
            guidance=float(rng.choice([3.0, 5.0, 6.0])),
        )


START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

# Words beyond the captions, so that prompts of users are not split into single letters.
_MORE_WORDS = """
photo of a person an animal the object with without and or not in on at by from to for style painting drawing portrait
picture image art artist artwork famous old new big small red green blue yellow black white bright dark colourful
color background man woman face nudity violence self harm van gogh dog cat car bird flower sky night day beautiful
detailed scene showing some something anything happy sad young hair hat crown beard glasses shirt light line shape
round square simple high quality best masterpiece
""".split()


def new_tokenizer(world: World = CANVAS, sizes: Sizes = Sizes()) -> CLIPTokenizer:
    """A byte-level CLIPTokenizer: every word of the world is one token, and any other text can be tokenized.

    The merges are learned by BPE on the captions. The end token has the largest id and is not 2, as in real CLIP:
    transformers pools the text at the largest id when ``eos_token_id == 2`` (a legacy path).
    """
    texts = [text for scene in world.every_scene() for text, _ in world.captions(scene)]
    words = Counter(re.findall(r"[a-z]+|[^a-z\s]", " ".join(texts + _MORE_WORDS * 2).lower()))
    learned = _merges(words, WORD_END)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in learned)])
    vocabulary = {token: k for k, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=sizes.tokens)


def _merges(words: Counter[str], end: str = "") -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token, the most frequent pair first, ties in alphabetical order."""
    pieces = {word: (*word[:-1], word[-1] + end) for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter[tuple[str, str]]()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        for word, parts in pieces.items():
            joined: list[str] = []
            for part in parts:
                if joined and part == right and joined[-1] == left:
                    joined[-1] = left + right
                else:
                    joined.append(part)
            pieces[word] = tuple(joined)


def new_clip(tokenizer: CLIPTokenizer, sizes: Sizes = Sizes()) -> CLIPModel:
    """Text tower (width 192) and vision tower (width 128, patch 8) of about 3 M parameters."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_width // 32,
        "max_position_embeddings": sizes.tokens,
        "projection_dim": EMBEDDING_WIDTH,
        **special,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": sizes.patch,
        "projection_dim": EMBEDDING_WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING_WIDTH))


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=SIZE,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
    )


def new_unet(sizes: Sizes = Sizes()) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=sizes.unet,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=sizes.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler(sizes: Sizes = Sizes()) -> DDIMScheduler:
    """By default the noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=sizes.beta_end,
        beta_schedule=sizes.beta_schedule,
        prediction_type=sizes.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def new_chat_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every word of ``texts`` is one token, and ``<image>`` marks the tokens of the image."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned = _merges(Counter(word for text in texts for word, _ in split.pre_tokenize_str(text)))
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in learned)])
    tokenizer = Tokenizer(models.BPE(vocab={token: k for k, token in enumerate(tokens)}, merges=learned))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)
    fast.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", normalized=False)]})
    return fast


def new_vision_language(clip: CLIPConfig, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """LLaVA with the vision tower of ``clip`` and a Llama of 1 M parameters.

    It reads the last layer of the tower with the class token. LLaVA-1.5 reads the patches of the last layer but one. In
    a published tower of 24 layers those patches encode what the whole image shows. In the four layers here they encode
    only their own position, and no single tensor that was tried then held a person (docs/slug.md has both figures).
    """
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    patches = (clip.vision_config.image_size // clip.vision_config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=clip.vision_config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=patches + 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config)


def judge_labels(world: World = CANVAS) -> list[str]:
    """Labels of the judge's outputs, ``head/class``; each head has its own softmax."""
    heads = {
        "style": world.styles,
        "object": (*world.objects, "none"),
        "identity": (*world.identities, "none"),
    }
    return [f"{head}/{name}" for head, names in heads.items() for name in names]


def new_judge(world: World = CANVAS) -> ResNetForImageClassification:
    labels = judge_labels(world)
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: k for k, label in enumerate(labels)},
    )
    return ResNetForImageClassification(config)
