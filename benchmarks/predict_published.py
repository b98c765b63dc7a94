"""The predictor against published measurements: every row predicted from the others.

    python benchmarks/predict_published.py

Leave-one-out: no constant that is fitted (decode factor, prefill factors, thread loss) has seen the row. The second
part leaves out all rows of the row's model, which is harder: a format that only this model was published in is
then guessed. Constants of `socs.yaml` are not fitted to rows; where they come from stands beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from pillm.devices.published import rows
from pillm.devices.speed import Error, fit, left_out

TARGETS = "targets: decode median 7 %, worst 20 %; prefill median 20 %"


def main() -> None:
    socs = list(dict.fromkeys(row.soc for row in rows()))
    found = [error for soc in socs for error in left_out(soc)]
    judged = [error for error in found if not error.row.further]
    print(f"{'board':<6}{'model':<16}{'type':<8}{'repack':<7}{'threads':>7}{'decode':>9}{'pred.':>8}{'error':>8}"
          f"{'prefill':>9}{'pred.':>8}{'error':>8}  runtime")  # fmt: skip
    for error in judged:
        print(line(error))
    print("\nfurther rows, which the fit uses, too")
    for error in found:
        if error.row.further:
            print(line(error))
    print("\nrows that the model should not explain, decided by their runtime")
    for error in judged:
        if error.row.unexplained:
            print(f"  {error.row.board} {error.row.model} {error.row.runtime}: {error.row.unexplained}")
    print(f"\n{TARGETS}")
    told("leave-one-out, rows that the model should explain", (e for e in judged if not e.row.unexplained))
    told("leave-one-out, all rows", judged)
    alone = [error for soc in socs for error in left_out(soc, False, False) if not error.row.further]
    told("leave-one-out from the rows of published.csv alone", (e for e in alone if not e.row.unexplained))
    by_model = [error for soc in socs for error in left_out(soc, True) if not error.row.further]
    told("leave-one-model-out, rows that the model should explain", (e for e in by_model if not e.row.unexplained))
    told("leave-one-model-out, all rows", by_model)
    print("\nfitted to all rows that the model should explain")
    for soc in socs:
        print(f"  {soc}: {fit(soc)}")


def line(error: Error) -> str:
    row = error.row
    text = f"{row.board:<6}{row.model:<16}{row.quant:<8}{'yes' if row.repack else 'no':<7}{row.threads:>7}"
    text += f"{row.decode_tps:>9.2f}{error.decode:>8.2f}{error.decode_error:>+8.1%}"
    if row.prefill_tps and error.prefill and error.prefill_error is not None:
        text += f"{row.prefill_tps:>9.1f}{error.prefill:>8.1f}{error.prefill_error:>+8.1%}"
    else:
        text += f"{'-':>9}{'':>16}"
    return f"{text}  {row.runtime}{' (not explained)' if row.unexplained else ''}"


def told(title: str, errors: Iterable[Error]) -> None:
    errors = list(errors)
    print(f"{title}:")
    for what, values in (
        ("decode", [abs(error.decode_error) for error in errors]),
        ("prefill", [abs(error.prefill_error) for error in errors if error.prefill_error is not None]),
    ):
        print(f"  {what:<8}{len(values):>3} rows: median {statistics.median(values):.1%}, worst {max(values):.1%}")


if __name__ == "__main__":
    main()
