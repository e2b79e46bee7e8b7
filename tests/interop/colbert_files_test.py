"""ColBERT checkpoints of others: both layouts there and back bit for bit, what the files say, and what is refused.

That PyLate 1.6 reads what is written here, and the other way round, with vectors that differ by less than 2e-7, was seen by hand: it is no dependency.
"""

import json
import string
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxrec.data.tokenizers import MARKS, SPECIAL, tokenize
from jaxrec.interop.colbert_files import PUNCTUATION, ColBERTCheckpoint, Settings, layout_of, read, write
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT
from jaxrec.nn.modernbert import ModernBERT
from jaxrec.param import create, flatten, unflatten
from jaxrec.sharding import Layout
from jaxrec.stages.pretrained_colbert import ColBERTTokenizer, PretrainedColBERT, checkpoint_of, method, parameters, with_our_names
from jaxrec.train.checkpoint import start_from
from jaxrec.train.step import make_runner

PIECES = [*SPECIAL, *MARKS.values(), *string.punctuation, "one", "two", "##s"]
ENCODER = BERT(vocabulary=len(PIECES), length=16, dim=8, layers=1, heads=2, hidden=12)
SKIPPED = tuple(range(len(SPECIAL) + 2, len(SPECIAL) + 2 + len(PUNCTUATION)))
COLBERT = ColBERT(encoder=ENCODER, dim=6, pad=0, mask_token=4, punctuation=SKIPPED)


def word_pieces(pieces=PIECES):
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.fixture(scope="module")
def params():
    """Random ones; rows of tables that stand for no piece and no position, which no checkpoint holds, are zero."""
    leaves = flatten(jax.jit(lambda: create(COLBERT.spec(), jax.random.key(0)))())
    for table, rows in {"bert.word.table": len(PIECES), "bert.position.table": 16, "bert.type.table": 2}.items():
        leaves[table] = leaves[table].at[rows:].set(0)
    return unflatten(COLBERT.spec(), leaves)


@pytest.fixture(scope="module")
def checkpoint(params):
    return checkpoint_of(COLBERT, params, word_pieces(), query_length=10, document_length=14)


def same(one, other):
    assert one.settings == other.settings and one.bert.keys() == other.bert.keys()
    assert one.projection.dtype == other.projection.dtype
    np.testing.assert_array_equal(one.projection, other.projection)
    for name, tensor in one.bert.items():
        assert tensor.dtype == other.bert[name].dtype
        np.testing.assert_array_equal(tensor, other.bert[name])


def change(path, **entries):
    """Changes entries of a JSON file; those that are None are removed."""
    value = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: entry for name, entry in value.items() if entry is not None}))


def change_tensors(path, **entries):
    save_file({name: tensor for name, tensor in (load_file(path) | entries).items() if tensor is not None}, path)


@pytest.mark.parametrize("layout", ["pylate", "stanford"])
def test_parameters_there_and_back_are_the_same_bits(tmp_path, params, checkpoint, layout):
    write(tmp_path / "a", checkpoint, layout)
    assert layout_of(tmp_path / "a") == layout
    found = read(tmp_path / "a")
    same(found, checkpoint)
    assert method(found) == COLBERT
    wanted = flatten(params)
    assert parameters(found).keys() == wanted.keys()
    for name, leaf in parameters(found).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, wanted[name], strict=True)


def test_files_there_and_back_keep_every_tensor_and_type(tmp_path, checkpoint):
    half = {name: tensor.astype(np.float16) for name, tensor in checkpoint.bert.items()} | {"pooler.dense.weight": np.eye(8, dtype=np.float16)}
    stored = replace(checkpoint, bert=half, projection=checkpoint.projection.astype(np.float16))
    for layout in ("pylate", "stanford", "pylate"):
        write(tmp_path / layout, stored, layout)
        before, stored = stored, read(tmp_path / layout)
        same(stored, before)
    write(tmp_path / "again", stored, "pylate")
    for path in sorted((tmp_path / "pylate").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "pylate")).read_bytes(), path
    np.testing.assert_array_equal(parameters(stored)["projection.kernel"], checkpoint.projection.astype(np.float16).T.astype(np.float32))


def test_the_files_are_those_of_the_two_layouts(tmp_path, checkpoint):
    write(tmp_path / "s", checkpoint, "stanford")
    tensors = load_file(tmp_path / "s" / "model.safetensors")
    assert tensors["linear.weight"].shape == (6, 8) and "bert.embeddings.word_embeddings.weight" in tensors and len(tensors) == len(checkpoint.bert) + 1
    metadata = json.loads((tmp_path / "s" / "artifact.metadata").read_text())
    assert metadata["dim"] == 6 and metadata["query_maxlen"] == 10 and metadata["doc_maxlen"] == 14 and metadata["mask_punctuation"] is True
    assert (metadata["query_token_id"], metadata["doc_token_id"]) == ("[unused0]", "[unused1]") and metadata["attend_to_mask_tokens"] is False
    assert json.loads((tmp_path / "s" / "config.json").read_text())["architectures"] == ["HF_ColBERT"]

    write(tmp_path / "p", checkpoint)
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "p" / "model.safetensors")
    assert load_file(tmp_path / "p" / "1_Dense" / "model.safetensors").keys() == {"linear.weight"}
    modules = json.loads((tmp_path / "p" / "modules.json").read_text())
    assert [(module["path"], module["type"]) for module in modules] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Dense", "pylate.models.Dense.Dense"),
    ]
    given = json.loads((tmp_path / "p" / "config_sentence_transformers.json").read_text())
    assert given["query_prefix"] == "[unused0]" and given["skiplist_words"] == list(string.punctuation) and given["similarity_fn_name"] == "MaxSim"
    text = Tokenizer.from_file(str(tmp_path / "p" / "tokenizer.json")).encode("ones").tokens  # others leave [CLS] and [SEP] to the tokenizer
    assert text == ["[CLS]", "one", "##s", "[SEP]"]


def test_settings_survive_and_have_defaults(tmp_path, checkpoint):
    odd = replace(checkpoint, settings=Settings(7, 9, "[unused0]", "[unused1]", augment=False, skipped=(".", ",")))
    write(tmp_path / "p", odd)
    found = read(tmp_path / "p")
    assert found.settings == odd.settings
    assert method(found) == replace(COLBERT, augment=False, punctuation=tuple(sorted((PIECES.index("."), PIECES.index(",")))))
    with pytest.raises(ValueError, match=r"'stanford' always augments queries and skips all punctuation or none; augment=False with 2 skipped pieces"):
        write(tmp_path / "s", odd, "stanford")
    write(tmp_path / "s", replace(checkpoint, settings=replace(checkpoint.settings, skipped=())), "stanford")
    assert method(read(tmp_path / "s")) == replace(COLBERT, skip_punctuation=False, punctuation=())
    change(tmp_path / "s" / "artifact.metadata", query_maxlen=None, doc_maxlen=None, query_token_id=None, mask_punctuation=None, dim=None)
    assert read(tmp_path / "s").settings == Settings(32, 220, "[unused0]", "[unused1]", True, PUNCTUATION)  # what ColBERT itself takes
    change(tmp_path / "p" / "config_sentence_transformers.json", query_length=None, do_query_expansion=None, skiplist_words=None)
    assert read(tmp_path / "p").settings == Settings(32, 9, "[unused0]", "[unused1]", True, PUNCTUATION)


def test_the_dimensions_of_answerai_colbert_small(tmp_path, checkpoint):
    wide = BERT(vocabulary=len(PIECES), length=16, dim=384, layers=1, heads=12, hidden=24)
    bert = {name: np.zeros(leaf.shape, np.float32) for name, leaf in jax.eval_shape(lambda: wide.to_hf(create(wide.spec(), jax.random.key(0)))).items()}
    write(tmp_path / "a", replace(checkpoint, config=wide.to_config(), bert=bert, projection=np.ones((96, 384), np.float32)), "stanford")
    found = read(tmp_path / "a")
    assert found.dim == 96 and method(found).dim == 96 and parameters(found)["projection.kernel"].shape == (384, 96)


def test_it_starts_a_whole_model(tmp_path, params, checkpoint):
    write(tmp_path / "a", checkpoint, "stanford")
    other = jax.jit(lambda: create(COLBERT.spec(), jax.random.key(1)))()
    started = flatten(start_from(other, {"": PretrainedColBERT(str(tmp_path / "a"))}))
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(started[name], leaf)
    assert ColBERTTokenizer(str(tmp_path / "a")).get().to_str() == Tokenizer.from_str((tmp_path / "a" / "tokenizer.json").read_text()).to_str()
    before = PretrainedColBERT(str(tmp_path / "a")).fingerprint()
    change(tmp_path / "a" / "artifact.metadata", doc_maxlen=15)
    assert PretrainedColBERT(str(tmp_path / "a")).fingerprint() != before


def test_marks_of_pylate_take_the_names_that_ours_have(tmp_path, checkpoint):
    tokenizer = word_pieces()
    tokenizer.add_tokens(["[Q] ", "[D] "])
    grown = {**checkpoint.bert, "embeddings.word_embeddings.weight": np.pad(checkpoint.bert["embeddings.word_embeddings.weight"], ((0, 2), (0, 0)))}
    settings = replace(checkpoint.settings, query_mark="[Q] ", document_mark="[D] ")
    config = {**checkpoint.config, "vocab_size": len(PIECES) + 2}
    write(tmp_path / "a", ColBERTCheckpoint(config, grown, checkpoint.projection, tokenizer.to_str(), settings))
    assert read(tmp_path / "a").settings == settings
    renamed = ColBERTTokenizer(str(tmp_path / "a")).get()
    for kind, mark in (("query", "[Q] "), ("document", "[D] ")):
        ids, _ = tokenize(renamed, ["ones, two"], 8, kind)
        assert ids[0].tolist() == [2, tokenizer.token_to_id(mark), *tokenizer.encode("ones, two").ids, 3, 0]
    assert renamed.get_vocab_size() == len(PIECES) + 2 and renamed.token_to_id("[Q] ") is not None
    crossed = replace(checkpoint, settings=replace(checkpoint.settings, query_mark="[unused1]", document_mark="one"))
    swapped = Tokenizer.from_str(with_our_names(crossed))
    assert [swapped.token_to_id(mark) for mark in MARKS.values()] == [PIECES.index("[unused1]"), PIECES.index("one")]
    with pytest.raises(ValueError, match=r"queries and documents have the same mark 'one'"):
        with_our_names(replace(checkpoint, settings=replace(checkpoint.settings, query_mark="one", document_mark="one")))


def test_a_modernbert_is_trained_a_step_and_goes_there_and_back(tmp_path):
    """With its kind of tokenizer: pieces of bytes, to which the special tokens and PyLate's marks were added later."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([*SPECIAL, *MARKS.values()])
    tokenizer.add_tokens(["[Q] ", "[D] "])
    pad, unknown, start, end, mask = (tokenizer.token_to_id(token) for token in SPECIAL)
    encoder = ModernBERT(vocabulary=tokenizer.get_vocab_size(), length=16, dim=8, layers=2, heads=2, hidden=12, window=4)
    colbert = ColBERT(encoder=encoder, dim=6, pad=pad, mask_token=mask, punctuation=tuple(sorted(map(tokenizer.token_to_id, PUNCTUATION))))

    texts = {"query": ["a?", "bc"], "document": ["A, b.", "cbabc"]}
    batch = {kind: tokenize(tokenizer, some, 12, kind)[0] for kind, some in texts.items()}
    batch |= {"query_row": np.arange(2), "document_row": np.arange(2), "mask": np.ones(2, np.float32)}
    runner = make_runner(colbert, optax.sgd(0.5), Layout(mesh=(("data", 1),)), devices=jax.devices()[:1])
    before = jax.device_get(flatten(runner.read(first := runner.start()).params))
    state, metrics = runner.run(first, [batch])
    params = runner.read(state).params
    assert np.isfinite(metrics["loss"]).all()
    for name, leaf in flatten(params).items():
        assert np.any(leaf != before[name]), name

    checkpoint = checkpoint_of(colbert, params, tokenizer, query_length=10, document_length=12)
    marks = replace(checkpoint.settings, query_mark="[Q] ", document_mark="[D] ")  # as PyLate's models have them
    write(tmp_path / "a", replace(checkpoint, settings=marks))
    found = read(tmp_path / "a")
    same(found, replace(checkpoint, settings=marks))
    assert method(found) == colbert
    rows = encoder.vocabulary  # behind those of the pieces lie rows that no checkpoint holds
    for name, leaf in parameters(found).items():
        np.testing.assert_array_equal(leaf[:rows], flatten(params)[name][:rows])
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architectures"] == ["ModernBertModel"]
    assert json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())["model_input_names"] == ["input_ids", "attention_mask"]
    renamed = ColBERTTokenizer(str(tmp_path / "a")).get()
    ids, _ = tokenize(renamed, ["ba"], 6, "query")
    assert ids[0].tolist() == [start, tokenizer.token_to_id("[Q] "), letters.index("b"), letters.index("a"), end, pad] and unknown not in ids
    with pytest.raises(ValueError, match="the layout 'stanford' holds a BERT, and config.json says model_type='modernbert', which needs layout='pylate'"):
        write(tmp_path / "s", checkpoint, "stanford")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_special_tokens_of_roberta_take_the_names_of_bert(tmp_path, kind):
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "[Q] ", "[D] ", *string.punctuation, "a", "b", "<mask>"]
    by_number = {piece: number for number, piece in enumerate(pieces)}
    bpe, unigram = models.BPE(by_number, [], unk_token="<unk>"), models.Unigram([(piece, 0.0) for piece in pieces], 3, False)
    tokenizer = Tokenizer(bpe if kind == "bpe" else unigram)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[Q] ", "[D] "])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    encoder = BERT(vocabulary=len(pieces), length=18, first=2, dim=8, layers=1, heads=2, hidden=12)
    bert = {name: np.ones(leaf.shape, np.float32) for name, leaf in jax.eval_shape(lambda: encoder.to_hf(create(encoder.spec(), jax.random.key(0)))).items()}
    settings = Settings(10, 14, "[Q] ", "[D] ")
    write(tmp_path / "a", ColBERTCheckpoint(encoder.to_config(), bert, np.ones((6, 8), np.float32), tokenizer.to_str(), settings))
    found = read(tmp_path / "a")
    assert method(found) == ColBERT(encoder=encoder, dim=6, pad=1, mask_token=len(pieces) - 1, punctuation=tuple(range(6, 38)))
    written = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert (written["cls_token"], written["pad_token"], written["mask_token"]) == ("<s>", "<pad>", "<mask>")
    renamed = ColBERTTokenizer(str(tmp_path / "a")).get()
    ids, _ = tokenize(renamed, ["ba?c"], 8, "document")
    assert ids[0].tolist() == [0, 5, by_number["b"], by_number["a"], by_number["?"], 3, 2, 1]
    assert renamed.encode("ba").ids == [0, by_number["b"], by_number["a"], 2]


def test_a_special_token_that_is_not_there_is_named(checkpoint):
    few = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(PIECES) if piece != "[MASK]"}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"the tokenizer lacks \[MASK\] or <mask>; late interaction needs the special tokens of BERT or RoBERTa"):
        method(replace(checkpoint, tokenizer=few.to_str()))


def test_a_mark_of_punctuation_that_is_no_piece_leaves_unknown_pieces_out(checkpoint):
    few = word_pieces([*SPECIAL, *MARKS.values(), ".", "one"]).to_str()
    assert method(replace(checkpoint, tokenizer=few)).punctuation == (1, 7)  # [UNK], as ColBERT and PyLate do


@pytest.mark.parametrize(
    ("layout", "file", "entries", "message"),
    [
        ("stanford", "artifact.metadata", {"attend_to_mask_tokens": True}, "artifact.metadata has attend_to_mask_tokens=True, and ColBERT here does only"),
        ("stanford", "artifact.metadata", {"similarity": "l2"}, "artifact.metadata has similarity='l2', and ColBERT here does only similarity='cosine'"),
        ("stanford", "artifact.metadata", {"interaction": "flipr"}, "interaction='flipr'"),
        ("stanford", "artifact.metadata", {"dim": 128}, r"tensor linear.weight has shape \(6, 8\), artifact.metadata asks for \(128, ...\)"),
        ("stanford", "artifact.metadata", {"query_token_id": "[Q]"}, r"the tokenizer has no word piece '\[Q\]', the mark of a query"),
        ("stanford", "artifact.metadata", {"doc_maxlen": 3}, "document_length=3 must be at least 4"),
        ("stanford", "artifact.metadata", {"query_maxlen": "x"}, "query_length='x' in the settings of the checkpoint; a whole number is expected"),
        ("stanford", "artifact.metadata", {"query_token_id": -1}, "query_mark=-1 in the settings of the checkpoint; a text is expected"),
        ("stanford", "config.json", {"vocab_size": "many"}, "config.json says vocab_size=many"),
        ("pylate", "config_sentence_transformers.json", {"skiplist_words": -1}, "skipped=-1 in the settings of the checkpoint; a list of texts is expected"),
        ("pylate", "config_sentence_transformers.json", {"prompts": "x"}, "has prompts='x', text put before every text"),
        ("stanford", "config.json", {"hidden_size": 16}, r"tensor linear.weight has shape \(6, 8\), config.json asks for \(dim, 16\)"),
        ("stanford", "config.json", {"vocab_size": 5}, r"the tokenizer has 42 word pieces and config.json says vocab_size=5"),
        ("pylate", "config_sentence_transformers.json", {"attend_to_expansion_tokens": True}, "has attend_to_expansion_tokens=True"),
        ("pylate", "config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "has similarity_fn_name='euclidean'"),
        ("pylate", "config_sentence_transformers.json", {"document_prefix": "[D] "}, r"no word piece '\[D\] ', the mark of a document"),
        ("pylate", "config_sentence_transformers.json", {"prompts": {"query": "search_query: "}}, "text put before every query"),
        ("pylate", "sentence_bert_config.json", {"do_lower_case": True}, "sentence_bert_config.json has do_lower_case=True"),
        ("pylate", "1_Dense/config.json", {"bias": True}, "1_Dense/config.json has bias=True"),
        ("pylate", "1_Dense/config.json", {"use_residual": True}, "use_residual=True"),
        ("pylate", "1_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}, "activation_function='torch"),
        ("pylate", "1_Dense/config.json", {"out_features": 7}, r"tensor linear.weight has shape \(6, 8\), 1_Dense/config.json asks for \(7, 8\)"),
        ("pylate", "tokenizer.json", {"model": 3}, "tokenizer.json is no tokenizer"),
    ],
)
def test_what_colbert_does_not_do_is_named(tmp_path, checkpoint, layout, file, entries, message):
    write(tmp_path / "a", checkpoint, layout)
    change(tmp_path / "a" / file, **entries)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value)


def test_tensors_that_do_not_fit_are_named(tmp_path, checkpoint):
    write(tmp_path / "s", checkpoint, "stanford")
    weights = tmp_path / "s" / "model.safetensors"
    name = "bert.encoder.layer.0.output.dense.weight"
    change_tensors(weights, **{name: np.zeros((8, 11), np.float32)})
    with pytest.raises(ValueError, match=r"tensor encoder.layer.0.output.dense.weight has shape \(8, 11\), the config asks for \(8, 12\)"):
        parameters(read(tmp_path / "s"))
    change_tensors(weights, **{name: None})
    with pytest.raises(ValueError, match=r"1 tensors of BERT are missing, encoder.layer.0.output.dense.weight first"):
        PretrainedColBERT(str(tmp_path / "s")).get()
    change_tensors(weights, **{"linear.weight": np.zeros(8, np.float32)})
    with pytest.raises(ValueError, match=r"tensor linear.weight of model.safetensors has shape \(8,\), expected \(dim, hidden\)"):
        read(tmp_path / "s")
    change_tensors(weights, **{"linear.weight": None})
    with pytest.raises(ValueError, match=r"model.safetensors has no tensor linear.weight, the projection to token vectors; its tensors begin bert.embeddings"):
        read(tmp_path / "s")
    write(tmp_path / "p", checkpoint)
    save_file({"weight": np.zeros((6, 8), np.float32)}, tmp_path / "p" / "1_Dense" / "model.safetensors")
    with pytest.raises(ValueError, match="1_Dense/model.safetensors has no tensor linear.weight.*begin weight"):
        read(tmp_path / "p")
    change(tmp_path / "s" / "config.json", model_type="electra")
    change_tensors(weights, **{"linear.weight": np.zeros((6, 8), np.float32)})
    with pytest.raises(ValueError, match="model_type='electra'; the encoders known are bert, roberta"):
        method(read(tmp_path / "s"))
    with pytest.raises(ValueError, match="model_type='electra'; the encoders known are bert, roberta"):
        write(tmp_path / "p", read(tmp_path / "s"))


def test_what_is_no_colbert_is_told(tmp_path, checkpoint):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    for folder, held in (("bert", "config.json"), ("none", "nothing")):
        with pytest.raises(FileNotFoundError, match=rf"{folder} is no ColBERT checkpoint: it has neither modules.json .* it holds {held}. A plain BERT"):
            read(tmp_path / folder)
    write(tmp_path / "p", checkpoint)
    modules = tmp_path / "p" / "modules.json"
    listed = json.loads(modules.read_text())
    modules.write_text(json.dumps([*listed, {"path": "2_Dense", "type": "pylate.models.Dense.Dense"}]))
    with pytest.raises(ValueError, match="modules.json lists .*Dense, pylate.models.Dense.Dense; a ColBERT is a Transformer and then one Dense"):
        read(tmp_path / "p")
    for text in ("{", '[{"type": "x"}]', "3"):
        modules.write_text(text)
        with pytest.raises(ValueError, match="modules.json is no list of modules with type and path"):
            read(tmp_path / "p")
    modules.write_text(json.dumps(listed))
    (tmp_path / "p" / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Dense has no model.safetensors"):
        PretrainedColBERT(str(tmp_path / "p")).fingerprint()


def test_a_folder_is_written_whole_or_left_alone(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a ColBERT checkpoint of layout pylate"):
        write(tmp_path / "mine", checkpoint)
    with pytest.raises(ValueError, match="layout='onnx' is not one of pylate, stanford"):
        write(tmp_path / "x", checkpoint, "onnx")
    write(tmp_path / "a", checkpoint)
    changed = replace(checkpoint, settings=replace(checkpoint.settings, query_length=11))
    with monkeypatch.context() as patched:
        patched.setattr("jaxrec.interop.colbert_files._write_pylate_settings", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "a", changed)
    same(read(tmp_path / "a"), checkpoint)
    write(tmp_path / "a", changed)
    assert read(tmp_path / "a").settings.query_length == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine"]
