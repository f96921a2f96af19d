"""C around the steps of a run's model: a whole forecast, and steps that read tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from parnl.export import text
from parnl.export.schedule import Buffer


def forecast(places: Sequence[int], context: int, horizon: int) -> dict[str, str]:
    """Return file name -> text of `model_forecast`.

    places: of the targets among the inputs. The steps in model.h read these as differences from
    the last value, and answer with differences from it.
    """
    header = _header("forecast", f"""\
        #define FORECAST_CONTEXT {context}
        #define FORECAST_HORIZON {horizon}
        #define FORECAST_TARGETS {len(places)}

        /* Read the last steps of a series, MODEL_INPUT_SIZE numbers each, as they stand in a file:
           FORECAST_CONTEXT of them as in training, or others, at least one. Write the
           FORECAST_HORIZON steps that follow, FORECAST_TARGETS numbers each. The arrays must not
           overlap. */
        void model_forecast(const float *series, int steps, float *answers);
        """)  # fmt: skip
    source = textwrap.dedent(f"""\
        #include "forecast.h"

        static const int place[FORECAST_TARGETS] = {{{", ".join(map(str, places))}}};

        void model_forecast(const float *series, int steps, float *answers)
        {{
            const float *last = series + (steps - 1) * MODEL_INPUT_SIZE;
            float input[MODEL_INPUT_SIZE];
            model_state state;
            model_reset(&state);
            for (int t = 0; t < steps; t++, series += MODEL_INPUT_SIZE) {{
                for (int i = 0; i < MODEL_INPUT_SIZE; i++)
                    input[i] = series[i];
                for (int k = 0; k < FORECAST_TARGETS; k++)
                    input[place[k]] -= last[place[k]];
                model_step(&state, input, answers);
            }}
            for (int i = 0; i < MODEL_OUTPUT_SIZE; i++)
                answers[i] += last[place[i % FORECAST_TARGETS]];
        }}
        """)
    return {"forecast.h": header, "forecast.c": source}


def tokens(rows: np.ndarray) -> dict[str, str]:
    """Return file name -> text of `model_token`; rows (tokens, inputs): what a step reads of each.

    The steps in model.h read a row.
    """
    header = _header("tokens", f"""\
        #define TOKENS_COUNT {len(rows)}

        /* Read a token, 0 <= token < TOKENS_COUNT; write the logits of the next one. The state is
           that of model_reset to begin with. */
        void model_token(model_state *state, int token, float *logits);
        """)  # fmt: skip
    source = textwrap.dedent("""\
        void model_token(model_state *state, int token, float *logits)
        {
            model_step(state, row + token * MODEL_INPUT_SIZE, logits);
        }
        """)
    table = text.constant(Buffer(0, "constant", "row", rows.size, rows.reshape(-1)))
    return {"tokens.h": header, "tokens.c": "\n".join(['#include "tokens.h"\n', table, source])}


def _header(name: str, body: str) -> str:
    guard = f"{name.upper()}_H"
    begin, end = (f"#ifdef __cplusplus\n{x}\n#endif\n" for x in ('extern "C" {', "}"))
    return (
        f"/* Written by parnl export; it calls the steps of model.h. */\n\n#ifndef {guard}\n"
        f'#define {guard}\n\n#include "model.h"\n\n{begin}\n{textwrap.dedent(body)}\n{end}\n'
        "#endif\n"
    )
