"""Which encoder a config asks for."""

import pytest

from jaxrec.nn.bert import BERT
from jaxrec.nn.encoders import ENCODERS, from_config
from jaxrec.nn.modernbert import ModernBERT
from jaxrec.nn.t5 import T5


@pytest.mark.parametrize("model", [BERT(dim=24, layers=2), BERT(first=2, length=514), ModernBERT(dim=24, layers=2), T5(decoder_layers=0)])
def test_a_config_gives_the_encoder_it_was_made_of(model):
    assert from_config(model.to_config()) == model


def test_of_an_encoder_decoder_the_encoder_is_taken():
    assert from_config(T5(layers=2, decoder_layers=3).to_config()) == T5(layers=2, decoder_layers=0)


def test_an_unknown_one_is_told():
    for config in ({}, {"model_type": "electra"}):
        with pytest.raises(ValueError, match=rf"model_type='{config.get('model_type', '')}'; the encoders known are {', '.join(ENCODERS)}"):
            from_config(config)
