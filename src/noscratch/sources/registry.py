"""Every source of data: where its bytes come from, what they must be, on which terms they may be used.

Sizes and sha256 of the GLUE archives, IMDB and CIFAR-10 are those that Hugging Face `datasets` (`dataset_infos.json`,
commit 040102f100) and TensorFlow Datasets (`url_checksums`, commit 333639b3) both publish. A source is taken only in
one of its listed forms. A file without a published digest (`sha256=None`) is trusted on first use: the digest found is
recorded, and any other one is refused from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noscratch.sources.unpack import Limits, Member

Label = Literal["official archive", "official tree", "rebuilt", "partial"]


@dataclass(frozen=True)
class File:
    """One file of a form.

    name: what it is called once fetched; bytes, sha256: None where nothing is published. urls: where it is on the
    network, in order. mirror: its places below the root of a mirror, in order. members: what to take out of it
    (nothing: the file itself is the output). limits: caps of the archive.
    """

    name: str
    bytes: int | None
    sha256: str | None
    urls: tuple[str, ...] = ()
    mirror: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    limits: Limits = Limits()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Form:
    """One accepted form of a source. A partial form lacks some of the source's content; note says what is special."""

    label: Label
    files: tuple[File, ...]
    note: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files that the form ends as."""
        return tuple(name for file in self.files for name in ([member.name for member in file.members] or [file.name]))


@dataclass(frozen=True)
class Source:
    """A source of data.

    edition changes only when the accepted content changes (it is part of addresses); forms stand in order of
    preference; blocked: why it cannot be had at all, for a source that is documented without being provided.
    """

    name: str
    title: str
    edition: str
    homepage: str
    licence: str
    terms: str
    citation: str
    forms: tuple[Form, ...]
    blocked: str | None = None


GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SPLITS = ("train", "dev", "test")
GLUE_PAPER = (
    "Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019"
)


def _archive(folder: str, archive: str, size: int, sha256: str, splits: tuple[str, ...] = SPLITS) -> Form:
    """The official zip of a GLUE task: <folder>/<split>.tsv are taken, what else it holds is left."""
    return Form(
        "official archive",
        (
            File(
                archive,
                size,
                sha256,
                urls=(GLUE + archive,),
                mirror=(f"glue/{archive}", archive),
                members=tuple(Member(f"{split}.tsv", (f"{folder}/{split}.tsv",)) for split in splits),
            ),
        ),
    )


def _tree(folder: str, files: dict[str, tuple[int, str]], label: Label = "official tree", note: str = "") -> Form:
    """The unpacked files of a GLUE task."""
    return Form(
        label,
        tuple(
            File(f"{split}.tsv", size, sha256, mirror=(f"glue/{folder}/{split}.tsv", f"{folder}/{split}.tsv"))
            for split, (size, sha256) in files.items()
        ),
        note,
    )


COLA = Source(
    name="cola",
    title="CoLA, the Corpus of Linguistic Acceptability",
    edition="1",
    homepage="https://nyu-mll.github.io/CoLA/",
    licence="none stated",
    terms="text (c) the authors of the cited publications; research use under fair use, by its README",
    citation="Warstadt, Singh and Bowman, Neural Network Acceptability Judgments, TACL 2019",
    forms=(
        _archive("CoLA", "CoLA.zip", 376971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
        _tree(
            "CoLA",
            {
                "train": (428590, "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624"),
                "dev": (53717, "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd"),
                "test": (48788, "3b4df85f7a9a0633574b38d181e18090ac961a24b18fb6bcd74999ddea8ad0b8"),
            },
        ),
    ),
)

SST2 = Source(
    name="sst2",
    title="SST-2, the Stanford Sentiment Treebank, two classes, phrases",
    edition="1",
    homepage="https://nlp.stanford.edu/sentiment/",
    licence="none stated",
    terms="none stated; cite the treebank",
    citation="Socher et al., Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, EMNLP 2013",
    forms=(
        _archive("SST-2", "SST-2.zip", 7439277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
        _tree(
            "SST-2",
            {
                "train": (3806081, "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1"),
                "dev": (94931, "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0"),
                "test": (197335, "69a938605609b3e6663b4487918fe1565eb293734e6e520d0366d1d412fd2a13"),
            },
        ),
    ),
)

STSB = Source(
    name="stsb",
    title="STS-B, the Semantic Textual Similarity Benchmark",
    edition="1",
    homepage="https://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark",
    licence="scores CC BY-SA 4.0",
    terms="the text is under the terms of each of its sources",
    citation="Cer et al., SemEval-2017 Task 1: Semantic Textual Similarity, SemEval 2017",
    forms=(
        _archive("STS-B", "STS-B.zip", 802872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
        _tree(
            "STS-B",
            {
                "train": (984099, "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2"),
                "dev": (276928, "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59"),
                "test": (292587, "16b4223d7d44a644fbc10f1b449472cfe81e1715fb07cf44023b0aa88ce856eb"),
            },
            "rebuilt",
            "rewritten from the original STSbenchmark into GLUE's columns: exact content, cell ends stripped",
        ),
    ),
)

RTE = Source(
    name="rte",
    title="RTE, Recognizing Textual Entailment (RTE-1, 2, 3 and 5)",
    edition="1",
    homepage="https://gluebenchmark.com/",
    licence="none stated",
    terms="research use",
    citation="Dagan, Glickman and Magnini, The PASCAL Recognising Textual Entailment Challenge, MLCW 2005; "
    + GLUE_PAPER,
    forms=(
        _archive("RTE", "RTE.zip", 697150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
        _tree(
            "RTE",
            {
                "train": (846226, "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c"),
                "dev": (90343, "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb"),
                "test": (933969, "6e33f09b5c2bfd5fd5fde217070f3dd49e484e33b9752b5864cf36fc421a213f"),
            },
        ),
    ),
)

WNLI = Source(
    name="wnli",
    title="WNLI, the Winograd Schema Challenge as inference",
    edition="1",
    homepage="https://cs.nyu.edu/~davise/papers/WinogradSchemas/WS.html",
    licence="commonly given as CC BY 4.0",
    terms="none stated with the files",
    citation="Levesque, Davis and Morgenstern, The Winograd Schema Challenge, KR 2012; " + GLUE_PAPER,
    forms=(
        _archive("WNLI", "WNLI.zip", 28999, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
        _tree(
            "WNLI",
            {
                "train": (99411, "9a88e9d54b6861cc796a088e9acf4f5f65064a9ef65ae6fa7a688b28391e5c9a"),
                "dev": (11261, "cba00490596dd14be8cf53b4f53bb744abe3a7b89f81ab210528d80225338ed5"),
                "test": (35761, "ff0296817e235bf6f7a230c5f6781bd6ee228a45445f6510831fdef6f2a04766"),
            },
        ),
    ),
)

IMDB = Source(
    name="imdb",
    title="IMDB, the Large Movie Review Dataset",
    edition="1",
    homepage="https://ai.stanford.edu/~amaas/data/sentiment/",
    licence="none stated",
    terms="research use; the text belongs to the users of IMDb",
    citation="Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011",
    forms=(
        Form(
            "official archive",
            (
                File(
                    "aclImdb.tar.gz",
                    84125825,
                    "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
                    urls=("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
                    mirror=("imdb/aclImdb_v1.tar.gz", "aclImdb_v1.tar.gz"),
                ),
            ),
        ),
        Form(
            "official tree",
            (
                File(
                    "aclImdb.tar.xz",
                    19034988,
                    "56bbbf1446a4c547b35108814d017c29061dc2f12b37f4a18ce1873d47edf74b",
                    mirror=("imdb/aclImdb_labelled.tar.xz",),
                ),
            ),
            "the 50,000 labelled reviews under their official names, packed again; without the unlabelled ones",
        ),
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in (COLA, SST2, STSB, RTE, WNLI, IMDB)}
