"""Published values, with their conditions: what figures of one's own are to be read beside."""

PUBLISHED = (
    ("rFID", "tokenizer f=16, V=16384, ImageNet val 256 px, depth 1 / 2 / 4 / 8", "2.98 / 0.93 / 0.60 / 0.42"),
    ("gFID", "16x16x2 XXL, ImageNet 256 px, guidance 2, 50,000 images against the training set", "2.58"),
    ("gFID", "16x16x2 XXXL, ImageNet 256 px, guidance 1.7, 50,000 images against the training set", "2.21"),
    ("rOCR, ROUGE-L", "rendered text at 512 px, Qwen2-VL, depth 1 / 2 / 8", ".73 / .81 / .83"),
    ("rOCR, ROUGE-L", "arXiv pages at 512 px, Qwen2-VL, depth 1 / 2 / 8", ".14 / .49 / .67"),
)
