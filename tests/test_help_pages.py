"""The nodes' help pages and translations, as files; `tests/comfy` sees to it that they agree with the nodes."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "web" / "docs"
LOCALES = {name: json.loads((ROOT / "locales" / name / "nodeDefs.json").read_text("utf-8")) for name in ("en", "zh-TW")}
PAGES = {"en": "{}.md", "zh-TW": "{}/zh-TW.md"}  # where the front end looks
SECTIONS = {
    "en": ("## Inputs", "## Outputs", "## Typical mistakes"),
    "zh-TW": ("## 輸入", "## 輸出", "## 常見錯誤"),
}
SIMPLIFIED = set("图为个这选择输节颜标层级载检预设边处结软转经过无样话应该缘网络质视频")  # none is a Traditional form


def texts(node: dict) -> list[str]:
    parts = [node, *node["inputs"].values(), *node["outputs"].values()]
    return [text for part in parts for text in part.values() if isinstance(text, str)]


def shape(value):
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else None


def test_both_languages_name_the_same_things():
    assert shape(LOCALES["en"]) == shape(LOCALES["zh-TW"])
    for node in LOCALES["zh-TW"].values():
        assert all(re.search("[\u4e00-\u9fff]", text) or text in ("VAE", "CFG") for text in texts(node))


@pytest.mark.parametrize("language", LOCALES)
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


def test_traditional_chinese_is_traditional():
    pages = [(DOCS / PAGES["zh-TW"].format(node)).read_text("utf-8") for node in LOCALES["zh-TW"]]
    words = [text for node in LOCALES["zh-TW"].values() for text in texts(node)]
    assert not SIMPLIFIED & set("".join(pages + words))
