"""Hostile PDFs made by the tests themselves, and broken variants of good ones: every one by a seed, none stored."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

TEXT = b"BT /F1 24 Tf 40 100 Td (Hello, reader) Tj ET"
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def pdf(objects: dict[int, bytes], trailer: bytes = b"") -> bytes:
    """A PDF of numbered objects with its cross-reference table; object 1 is the catalogue."""
    out, places = bytearray(b"%PDF-1.7\n"), dict[int, int]()
    for number, body in sorted(objects.items()):
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(out), max(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    for number in range(1, size):
        out += b"%010d 00000 n \n" % places[number] if number in places else b"0000000000 65535 f \n"
    return bytes(out + b"trailer\n<< /Size %d /Root 1 0 R %s>>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, start))


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A stream object."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def page(
    contents: bytes = TEXT,
    box: bytes = b"0 0 300 200",
    resources: bytes = b"",
    more: dict[int, bytes] | None = None,
    filters: bytes = b"",
) -> bytes:
    """A document of one page; objects from 10 on are `more`, its resources may name them; `filters` of its contents."""
    leaf = b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> %s >> >>"
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: leaf % (box, resources),
        4: stream(contents, filters),
        5: FONT,
    }
    return pdf(objects | (more or {}))


def _bomb(times: int) -> bytes:
    """Zeros deflated `times` over: each time a thousandth of the size."""
    data = bytes(1 << 20)
    deflate = zlib.compressobj(1)
    data = b"".join(deflate.compress(data) for _ in range(1 << 13)) + deflate.flush()  # 8 GiB in 40 MB
    for _ in range(times - 1):
        data = zlib.compress(data, 9)
    return data


def _many_pages(count: int) -> bytes:
    """So many pages in two levels of a page tree, all of them the same object."""
    kids = b" ".join([b"6 0 R"] * (count // 1000))
    leaves = b" ".join([b"3 0 R"] * 1000)
    return pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
            3: b"<< /Type /Page /Parent 6 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
            b"/Resources << /Font << /F1 5 0 R >> >> >>",
            4: stream(TEXT),
            5: FONT,
            6: b"<< /Type /Pages /Parent 2 0 R /Kids [%s] /Count 1000 >>" % leaves,
        }
    )


def _page_tree_cycle() -> bytes:
    return pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 5 >>",
            3: b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] /Count 5 >>",
        }
    )


def _calls_itself() -> bytes:
    form = stream(
        b"/X1 Do " + TEXT,
        b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] /Resources << /XObject << /X1 10 0 R >> >>",
    )
    return page(b"/X1 Do", resources=b"/XObject << /X1 10 0 R >>", more={10: form})


def _forms_of_forms(levels: int) -> bytes:
    """Each form calls the next ten times: 10^levels drawings from two kilobytes."""
    resources = b"/Resources << /XObject << /X %d 0 R >> /Font << /F1 5 0 R >> >>"
    entries = b"/Type /XObject /Subtype /Form /BBox [0 0 300 200] " + resources
    forms = {10 + n: stream(b"/X Do " * 10, entries % (11 + n)) for n in range(levels)}
    return page(b"/X Do", resources=b"/XObject << /X 10 0 R >>", more=forms | {10 + levels: stream(TEXT, entries % 5)})


def _huge_image() -> bytes:
    size = b"/Width 32000 /Height 32000 /ColorSpace /DeviceRGB /BitsPerComponent 8"
    entries = b"/Type /XObject /Subtype /Image /Filter /FlateDecode " + size
    image = stream(zlib.compress(bytes(1 << 20), 9), entries)
    return page(b"300 0 0 200 0 0 cm /X Do", resources=b"/XObject << /X 10 0 R >>", more={10: image})


def _javascript() -> bytes:
    return pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R /OpenAction << /S /JavaScript /JS (while \\(true\\) {}) >> >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
            b"/Resources << /Font << /F1 5 0 R >> >>"
            b" /AA << /O << /S /JavaScript /JS (while \\(true\\) {}) >> >> >>",
            4: stream(TEXT),
            5: FONT,
        }
    )


def _broken_font(seed: int) -> bytes:
    """A TrueType font whose tables are noise."""
    noise = b"\x00\x01\x00\x00\x00\x0c" + random.Random(seed).randbytes(4000)
    font = b"<< /Type /Font /Subtype /TrueType /BaseFont /Bad /FirstChar 32 /LastChar 126 /FontDescriptor 10 0 R >>"
    descriptor = b"<< /Type /FontDescriptor /FontName /Bad /Flags 32 /FontBBox [-9e9 -9e9 9e9 9e9] /FontFile2 11 0 R >>"
    return page(more={5: font, 10: descriptor, 11: stream(noise, b"/Length1 999999999")})


def _encrypted() -> bytes:
    """The standard security handler with keys that fit no password."""
    lock = b"<< /Filter /Standard /V 2 /R 3 /Length 128 /P -3904 /O <%s> /U <%s> >>" % (b"ab" * 32, b"cd" * 32)
    one = page(more={10: lock})
    return one.replace(b"/Root 1 0 R ", b"/Root 1 0 R /Encrypt 10 0 R /ID [<00> <00>] ")


def made() -> dict[str, bytes]:
    """Hostile documents by name; what each does is its name."""
    return {
        "box-of-10^6-points": page(box=b"0 0 1000000 1000000"),
        "box-without-area": page(box=b"0 0 0 0"),
        "box-backwards": page(box=b"300 200 0 0"),
        "box-of-nonsense": page(box=b"nan (x) /y <00>"),
        "10^6-pages": _many_pages(10**6),
        "page-tree-cycle": _page_tree_cycle(),
        "form-calls-itself": _calls_itself(),
        "javascript": _javascript(),
        "font-of-noise": _broken_font(0),
        "encrypted": _encrypted(),
        "no-page": pdf({1: b"<< /Type /Catalog /Pages 2 0 R >>", 2: b"<< /Type /Pages /Kids [] /Count 0 >>"}),
        "contents-that-nest": page(b"q " * 200_000 + TEXT),
        "contents-of-noise": page(random.Random(1).randbytes(20_000)),
        "name\nwith newline": page(),
        "..%2f..%2fetc-passwd": page(),
    }


def bombs() -> dict[str, bytes]:
    """Small documents that take time or memory without end."""
    return {
        "image-of-10^9-pixels": _huge_image(),
        "bomb-in-contents": page(_bomb(2), filters=b"/Filter [/FlateDecode /FlateDecode]"),
        "forms-of-forms": _forms_of_forms(12),
    }


def broken(folder: Path, number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`number` variants of the PDFs of a folder, none over 400 kB: bytes flipped, some zeroed, or the end cut off."""
    rng = random.Random(seed)
    originals = [path for path in sorted(folder.glob("*.pdf")) if path.stat().st_size < 400_000]
    for variant in range(number):
        path = originals[variant % len(originals)]
        data = bytearray(path.read_bytes())
        how = rng.choice(("flip", "zero", "cut"))
        if how == "flip":
            for _ in range(rng.choice((1, 10, 100, 1000))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == "zero":
            start = rng.randrange(len(data))
            stop = min(start + rng.randrange(1, 5000), len(data))
            data[start:stop] = bytes(stop - start)
        else:
            del data[rng.randrange(len(data)) :]
        yield f"{path.stem}-{how}-{variant:04d}", bytes(data)
