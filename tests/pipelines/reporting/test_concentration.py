"""The documents with the highest loss, compared with a computation in plain Python."""

import numpy as np
import pytest

from pipelines.reporting.concentration import hardest_documents, hardest_sentence, hardest_warning


@pytest.mark.parametrize("weighted", [False, True])
def test_the_shares_are_those_of_the_documents_with_the_highest_mean_loss(weighted):
    rng = np.random.default_rng(0)
    documents = rng.integers(0, 50, 1000) * 7
    weights = rng.integers(1, 20, 1000)
    losses = rng.gamma(2.0, 0.5, (3, 1000)) + rng.random(351)[documents]
    sizes, totals = dict.fromkeys(documents.tolist(), 0.0), dict.fromkeys(documents.tolist(), 0.0)
    for example, document in enumerate(documents.tolist()):
        size = float(weights[example]) if weighted else 1.0
        sizes[document] += size
        totals[document] += size * sum(losses[:, example].tolist()) / 3
    hardest = sorted(sizes, key=lambda document: totals[document] / sizes[document])[-3:]  # 2.5 of 50, rounded up
    found, example = hardest_documents(losses, documents, weights if weighted else None)
    assert found["documents"] == 3
    assert found["tokens"] == pytest.approx(sum(sizes[one] for one in hardest) / sum(sizes.values()))
    assert found["loss"] == pytest.approx(sum(totals[one] for one in hardest) / sum(totals.values()))
    assert documents[example] == hardest[-1]


def test_one_document_is_the_hardest():
    found = hardest_documents(np.ones((1, 4)), np.zeros(4, int), None)
    assert found == ({"documents": 1, "tokens": 1, "loss": 1}, 0)


def data(**changed) -> dict:
    return {"hardest": {"documents": 4, "tokens": 0.05, "loss": 0.09, **changed}, "unseen": 0.0, "eval_split": "test"}


def test_the_report_warns_of_few_documents_that_decide():
    assert hardest_sentence(data()) == (
        "The 4 documents with the highest loss have 5.0% of the target tokens and 9.0% of the baseline's loss."
    )
    assert hardest_warning(data()) == hardest_warning(data(loss=0.25)) == ""
    warning = hardest_warning(data(loss=0.28, input="de: 1977-09-10"))
    assert "The 4 documents with the highest loss have 28% of the baseline's loss; look at them" in warning
    assert "(an example: 'de: 1977-09-10')." in warning
    assert "The document with the highest loss has 28% of the" in hardest_warning(data(documents=1, loss=0.28))


def test_the_share_of_unseen_tokens_is_given_if_there_are_any():
    unseen = "0.31% of the test tokens never occur in the training split."
    assert hardest_sentence({**data(), "unseen": 0.0031}).endswith(f"loss. {unseen}")
    assert "never" not in hardest_sentence({**data(), "unseen": None})  # data of an older version
