"""The nodes' help pages and translations, as files; `tests/comfy` checks that they agree with the nodes."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "web" / "docs"
LOCALES = {
    path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "locales").glob("*/nodeDefs.json"))
}
LETTERS = {"en": "[a-z]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7a3]"}
LETTERS |= dict.fromkeys(("zh", "zh-TW"), "[\u4e00-\u9fff]")
PAGES = {"en": "{}.md", "zh-TW": "{}/zh-TW.md"}  # where the front end looks
SECTIONS = {"en": ("## Inputs", "## Outputs", "## Typical mistakes"), "zh-TW": ("## 輸入", "## 輸出", "## 常見錯誤")}
SIMPLIFIED = set("图为个这选择输节颜标层级载检预设边处结软转经过无样话应该缘网络质视频")  # none is a Traditional form
TRADITIONAL = set("圖為個這選擇輸節顏標層級載檢預設邊處結軟轉經過無樣話應該緣網絡質視頻")  # none is a Simplified form


def texts(node: dict) -> list[str]:
    parts = [node, *node["inputs"].values(), *node["outputs"].values()]
    return [text for part in parts for text in part.values() if isinstance(text, str)]


def shape(value):
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else None


def test_the_languages_name_the_same_things():
    assert LOCALES.keys() == LETTERS.keys()
    for language, nodes in LOCALES.items():
        assert shape(nodes) == shape(LOCALES["en"]), language
        for node in nodes.values():
            assert all(re.search(LETTERS[language], text) or text in ("VAE", "CFG") for text in texts(node)), language


def test_numbers_and_choices_are_the_same_in_all_languages():
    """What a tooltip says about values: its decimal numbers, and the names of files and of choices."""

    def values(text: str) -> set[str]:
        return set(re.findall(r"\d\.\d+|[a-z]+_[a-z]+|[a-z-]+\.safetensors|multiband|precise|dpmpp_2m", text))

    for language, nodes in LOCALES.items():
        for kind, node in nodes.items():
            for name, part in node["inputs"].items():
                english = values(LOCALES["en"][kind]["inputs"][name]["tooltip"])
                found = values(part["tooltip"])
                english = {value for value in english if not value.isidentifier() or value in found}
                assert english <= found, (language, kind, name)


@pytest.mark.parametrize("language", PAGES)
@pytest.mark.parametrize("node", LOCALES["en"])
def test_a_page_has_what_a_user_looks_for(node: str, language: str):
    page, words = (DOCS / PAGES[language].format(node)).read_text("utf-8"), LOCALES[language][node]
    assert page.startswith(f"# {words['display_name']}\n")
    for section in SECTIONS[language]:
        assert page.count(section) == 1
    for group in ("inputs", "outputs"):
        for part in words[group].values():
            assert part["name"] in page, f"{part['name']} is not explained"
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert pictures
    for picture in pictures:
        assert (DOCS / picture).is_file()  # the front end resolves it against docs/, whatever the page's own folder


def test_chinese_is_traditional_or_simplified():
    pages = [(DOCS / PAGES["zh-TW"].format(node)).read_text("utf-8") for node in LOCALES["zh-TW"]]
    words = {name: "".join(text for node in LOCALES[name].values() for text in texts(node)) for name in ("zh", "zh-TW")}
    assert not SIMPLIFIED & set("".join(pages) + words["zh-TW"])
    assert not TRADITIONAL & set(words["zh"])
