"""How the embedded model `demo` is made: corpus, tokenizer, training, quantisation, export."""
