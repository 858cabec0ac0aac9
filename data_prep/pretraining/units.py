"""Sizes of the units of work, which decide neither what is drawn nor its order within a unit."""

BLOCK_SENTENCES = 1 << 19  # times a block's documents are read, counted in sentences
LOCKSTEP_DOCUMENTS = 1 << 13
LOCKSTEP_DOCUMENTS_OF_LARGE = 1 << 7  # where each look-up may map 2 MiB
SHUFFLED_PAIRS = 1 << 20  # pairs shuffled at once in memory
CHUNK_INSTANCES = 1 << 14
BATCH_TOKENS = 1 << 18  # padded tokens masked and encoded at once

TOKENIZER_MEMO_BYTES = 384 << 20  # English needs about 100 MB per 400,000 distinct chunks
