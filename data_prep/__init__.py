"""Text in, memory-mapped token shards out; built once, whoever asks. Needs no torch.

`pipeline/encode_corpus.py` takes a document all the way: `readers/chunks.py` and the reader of its format, then
`filters/cleaning.py`, `tokenizer/fast_encode.py` and `shards/writer.py`.
"""
