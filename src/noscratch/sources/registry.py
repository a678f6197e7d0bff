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
    (nothing: the file itself is the output). limits: caps of the archive. folder: it is a folder of a mirror, which
    ends as one uncompressed tar called `name`.
    """

    name: str
    bytes: int | None
    sha256: str | None
    urls: tuple[str, ...] = ()
    mirror: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    folder: bool = False


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

MRPC = Source(
    name="mrpc",
    title="MRPC, the Microsoft Research Paraphrase Corpus, raw files and dev ids",
    edition="1",
    homepage="https://www.microsoft.com/en-us/download/details.aspx?id=52398",
    licence="Microsoft's own; it forbids passing the data on",
    terms="fetch it yourself; GLUE rebuilds its splits from the raw files and a list of pairs",
    citation="Dolan and Brockett, Automatically Constructing a Corpus of Sentential Paraphrases, IWP 2005",
    forms=(
        Form(
            "official archive",
            tuple(
                File(name, size, sha256, urls=(base + name,), mirror=(f"glue/MRPC/{name}", f"MRPC/{name}", name))
                for base, name, size, sha256 in (
                    (
                        SENTEVAL,
                        "msr_paraphrase_train.txt",
                        1047044,
                        "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
                    ),
                    (
                        SENTEVAL,
                        "msr_paraphrase_test.txt",
                        441275,
                        "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
                    ),
                    (
                        GLUE,
                        "mrpc_dev_ids.tsv",
                        6222,
                        "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
                    ),
                )
            ),
            "dev = the pairs of msr_paraphrase_train.txt that mrpc_dev_ids.tsv lists, train = the rest",
        ),
    ),
)

QQP = Source(
    name="qqp",
    title="QQP, Quora Question Pairs (the archive as it is since September 2020)",
    edition="1",
    homepage="https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs",
    licence="Quora's terms of service",
    terms="non-commercial use",
    citation="Iyer, Dandekar and Csernai, First Quora Dataset Release: Question Pairs, 2017; " + GLUE_PAPER,
    forms=(
        _archive("QQP", "QQP-clean.zip", 41696084, "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),
    ),
)

MNLI = Source(
    name="mnli",
    title="MNLI, Multi-Genre Natural Language Inference, matched and mismatched",
    edition="1",
    homepage="https://cims.nyu.edu/~sbowman/multinli/",
    licence="mixed: OANC and others, by genre",
    terms="by genre",
    citation="Williams, Nangia and Bowman, A Broad-Coverage Challenge Corpus for Sentence Understanding, NAACL 2018",
    forms=(
        _archive(
            "MNLI",
            "MNLI.zip",
            312783507,
            "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
            ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"),
        ),
    ),
)

QNLI = Source(
    name="qnli",
    title="QNLI, question and sentence pairs from SQuAD (version 2 of the task)",
    edition="1",
    homepage="https://gluebenchmark.com/",
    licence="CC BY-SA 4.0, as SQuAD",
    terms="as SQuAD",
    citation="Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016; " + GLUE_PAPER,
    forms=(
        _archive("QNLI", "QNLIv2.zip", 10627589, "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),
        _tree(
            "QNLI",
            {
                "dev": (1367333, "763e95932dd3578251de71582e06829015f9c3815a518c751dc537219b159de4"),
                "test": (1300988, "6d856264e292fa7a7bc7b8e182efa1454ffd9532733c12ad813017dd5b377a5a"),
            },
            "partial",
            "no train; the text of dev is 9 bytes short of the published total (three U+FEFF in row 60)",
        ),
    ),
)

AX = Source(
    name="ax",
    title="AX, the GLUE diagnostic set (scored by the MNLI model)",
    edition="1",
    homepage="https://gluebenchmark.com/diagnostics",
    licence="none stated",
    terms="none stated",
    citation=GLUE_PAPER,
    forms=(
        Form(
            "official archive",
            (
                File(
                    "test.tsv",
                    222257,
                    "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd",
                    urls=(GLUE + "AX.tsv",),
                    mirror=("glue/AX/AX.tsv", "glue/AX.tsv", "AX.tsv"),
                ),
            ),
        ),
    ),
)

CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt")
CIFAR_TERMS = "no formal licence; cite the report"
CIFAR_PAPER = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009"

CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10, 60,000 images of 32 x 32 in ten classes, binary version",
    edition="1",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated",
    terms=CIFAR_TERMS,
    citation=CIFAR_PAPER,
    forms=(
        Form(
            "official archive",
            (
                File(
                    "cifar-10-binary.tar.gz",
                    170052171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                    urls=(
                        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                        "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
                    ),
                    mirror=("cifar10/cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz"),
                    members=tuple(Member(name, (f"cifar-10-batches-bin/{name}",)) for name in CIFAR_FILES),
                ),
            ),
        ),
        Form(
            "partial",
            (
                File(
                    "cifar-10-first1017.tar.xz",
                    14198900,
                    "41d2b7757d8fc06c9ead9b80b0d72133777eedf3f1c402407cef23850fae1192",
                    mirror=("cifar10/cifar-10-first1017.tar.xz",),
                    members=tuple(Member(name, (f"cifar-10-batches-bin-first1017/{name}",)) for name in CIFAR_FILES),
                ),
            ),
            "the first 1,017 images of each of the six batches, exact, in the records of the binary version",
        ),
    ),
)

CIFAR10_JPEG = Source(
    name="cifar10-jpeg",
    title="CIFAR-10 as JPEG of quality 75: real content, not the official pixels",
    edition="1",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated",
    terms=CIFAR_TERMS,
    citation=CIFAR_PAPER,
    forms=(
        Form(
            "rebuilt",
            (
                File(
                    "images.tar.xz",
                    18545616,
                    "a8f464cf2556eeeaabdcd7677e933a0d89b69b122881788ab309b4c9e2dbee70",
                    mirror=("cifar10/CIFAR-10-images_jpeg75.tar.xz",),
                ),
                *(
                    File(f"labels_{batch}.txt", 10001, sha256, mirror=(f"cifar10/labels_{batch}.txt",))
                    for batch, sha256 in {
                        "data_batch_1": "721e4450eb0fc5ed480bd8a4767686cfb8f11cc9617b75d35030d389eb25305a",
                        "data_batch_2": "e470d59fe7990bc179cb5d352a3ca66e2883d5b4ee7c2a7247789a921d633fe6",
                        "data_batch_3": "c4f306dd36989f9015ea117452aac6d901ac722120d95ccec92a8bc80af568e1",
                        "data_batch_4": "cb46163cd6a82c8125e180bc511c709e55a328b3216bab82e5973117cd0a0ea7",
                        "data_batch_5": "2fb18b5fa46a6fb47d3aa058aa11905ac2e13a22dfc3c53957db30bf002b8582",
                        "test_batch": "7dd1962c154511c1b591385a0a00801e1e95798e59be60fa247dda131752c11c",
                    }.items()
                ),
            ),
            "all 60,000 images, lossy; file k of a class is its k-th image in the order of labels_*.txt",
        ),
    ),
)

LRA_BUCKET = "https://storage.googleapis.com/long-range-arena/"
LRA_PAPER = "Tay et al., Long Range Arena: A Benchmark for Efficient Transformers, ICLR 2021"
# The release nests its root once more than its README says, and holds a second pathfinder128 beside the inner root
# (https://github.com/google-research/long-range-arena/issues/38): the inner one is meant.
LRA_ROOTS = ("lra_release/lra_release/", "lra_release/", "")


def _lra_places(path: str) -> tuple[str, ...]:
    return tuple(root + path for root in LRA_ROOTS)


def _lra_release(*members: Member) -> Form:
    """The whole release, 8.23 GB, for which no digest was ever published; downloads of it have answered 403."""
    return Form(
        "official archive",
        (
            File(
                "lra_release.gz",
                None,
                None,
                urls=(LRA_BUCKET + "lra_release.gz",),
                mirror=("lra/lra_release.gz", "lra_release.gz"),
                members=members,
                limits=Limits(members=5_000_000, bytes=40 << 30),
            ),
        ),
        "no published digest: trusted on first use",
    )


def _lra_tree(*files: File) -> Form:
    return Form("official tree", files, "no published digest: trusted on first use")


LISTOPS_FILES = ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv")
AAN_FILES = ("new_aan_pairs.train.tsv", "new_aan_pairs.eval.tsv", "new_aan_pairs.test.tsv")
AAN_MIRROR = "https://huggingface.co/datasets/OpenNLPLab/lra/resolve/6cb133c44f406da743661488df9e977b87d98775/data/aan/"

LRA_LISTOPS = Source(
    name="lra-listops",
    title="ListOps of the Long Range Arena release",
    edition="1",
    homepage="https://github.com/google-research/long-range-arena",
    licence="Apache-2.0",
    terms="as its repository",
    citation="Nangia and Bowman, ListOps, NAACL 2018 student research workshop; " + LRA_PAPER,
    forms=(
        _lra_tree(
            *(
                File(
                    name,
                    None,
                    None,
                    urls=(f"{LRA_BUCKET}lra_release/listops-1000/{name}",),
                    mirror=_lra_places(f"listops-1000/{name}"),
                )
                for name in LISTOPS_FILES
            )
        ),
        _lra_release(*(Member(name, _lra_places(f"listops-1000/{name}")) for name in LISTOPS_FILES)),
    ),
)

LRA_AAN = Source(
    name="lra-aan",
    title="Retrieval (AAN pairs) of the Long Range Arena release",
    edition="1",
    homepage="https://github.com/google-research/long-range-arena",
    licence="the texts are under the terms of the ACL Anthology",
    terms="AAN itself is not passed on by its makers",
    citation="Radev et al., The ACL Anthology Network Corpus, LREC 2013; " + LRA_PAPER,
    forms=(
        _lra_tree(*(File(name, None, None, mirror=_lra_places(f"tsv_data/{name}")) for name in AAN_FILES)),
        _lra_release(*(Member(name, _lra_places(f"tsv_data/{name}")) for name in AAN_FILES)),
        Form(
            "rebuilt",
            tuple(File(name, None, None, urls=(AAN_MIRROR + name,)) for name in AAN_FILES),
            "a copy at a pinned revision, never compared with the release; trusted on first use",
        ),
    ),
)


def _pathfinder(size: int) -> Source:
    """The hard set of one resolution, as one tar of `imgs/<batch>/sample_<i>.png` and `metadata/<batch>.npy` (text)."""
    folder = f"pathfinder{size}/curv_contour_length_14"
    name = f"pathfinder{size}.tar"
    return Source(
        name=f"lra-pathfinder{size}",
        title=f"Pathfinder at {size} x {size} pixels (contour length 14) of the Long Range Arena release",
        edition="1",
        homepage="https://github.com/google-research/long-range-arena",
        licence="Apache-2.0",
        terms="as its repository",
        citation="Linsley et al., Learning Long-Range Spatial Dependencies, NeurIPS 2018; " + LRA_PAPER,
        forms=(
            _lra_tree(
                File(name, None, None, mirror=_lra_places(folder), limits=Limits(bytes=40 << 30), folder=True),
            ),
            _lra_release(Member(name, _lra_places(folder), folder=True)),
        ),
    )


WIKITEXT103 = Source(
    name="wikitext103",
    title="WikiText-103, raw text",
    edition="1",
    homepage="https://www.salesforce.com/blog/the-wikitext-long-term-dependency-language-modeling-dataset/",
    licence="CC BY-SA 3.0 and GFDL, as Wikipedia",
    terms="share alike, with attribution",
    citation="Merity et al., Pointer Sentinel Mixture Models, ICLR 2017",
    forms=(
        Form(
            "official archive",
            (
                File(
                    "wikitext-103-raw-v1.zip",
                    191984949,
                    "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
                    urls=(
                        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-raw-v1.zip",
                        "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
                    ),
                    mirror=("wikitext/wikitext-103-raw-v1.zip", "wikitext-103-raw-v1.zip"),
                    members=tuple(
                        Member(f"wiki.{split}.raw", (f"wikitext-103-raw/wiki.{split}.raw",))
                        for split in ("train", "valid", "test")
                    ),
                ),
            ),
            "the first address is the official one; the digest vouches for the other",
        ),
    ),
)

WIKIPEDIA_BOOKCORPUS = Source(
    name="wikipedia-bookcorpus",
    title="English Wikipedia and BookCorpus, in shards of masked sentences",
    edition="1",
    homepage="https://github.com/IntelLabs/academic-budget-bert",
    licence="Wikipedia CC BY-SA; BookCorpus none",
    terms="BookCorpus is not passed on by its makers",
    citation="Izsak, Berchansky and Levy, How to Train BERT with an Academic Budget, EMNLP 2021",
    forms=(),
    blocked="no stable address: BookCorpus is not distributed, and a Wikipedia dump changes with its date",
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        *(COLA, SST2, MRPC, STSB, QQP, MNLI, QNLI, RTE, WNLI, AX),
        *(IMDB, CIFAR10, CIFAR10_JPEG, LRA_LISTOPS, LRA_AAN),
        *(_pathfinder(size) for size in (32, 128, 256)),
        *(WIKITEXT103, WIKIPEDIA_BOOKCORPUS),
    )
}
