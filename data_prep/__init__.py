"""Text in, memory-mapped token shards out; built once, whoever asks. Needs no torch.

`pipeline/encode_corpus.py` takes a document all the way: in a worker `pipeline/encode_chunk.py`, with
`readers/chunks.py`, the reader of its format, `filters/cleaning.py` and `tokenizer/fast_encode.py`, then
`shards/writer.py`.
"""
