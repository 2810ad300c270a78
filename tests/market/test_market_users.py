"""Registration, login, the signed-in user, profiles and follows: every endpoint, every status."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.market.harness import PASSWORD, Api, Person, one_platform, one_shard, serving

from market.settings import Settings

pytestmark = one_platform

TAKEN = ["has already been taken"]
BLANK = ["can't be blank"]


def new(username: str = "Jake", email: str = "jake@jake.jake", password: str = PASSWORD) -> dict[str, object]:
    return {"user": {"username": username, "email": email, "password": password}}


async def test_registering_answers_the_user_and_a_token_that_works(api: Api) -> None:
    """201 with an empty profile; the token signs the person in."""
    user = (await api.call("POST", "/users", new(), expect=201))["user"]
    assert {**user, "token": ""} == {
        "username": "Jake", "email": "jake@jake.jake", "bio": None, "image": None, "token": "",
    }  # fmt: skip
    assert (await api.call("GET", "/user", by=user["token"], expect=200))["user"]["username"] == "Jake"


@pytest.mark.parametrize(
    ("again", "fields"),
    [
        (new(email="other@example.com"), {"username"}),
        (new(email="other@example.com", username="jAKE"), {"username"}),
        (new(username="Other"), {"email"}),
        (new(username="Other", email="JAKE@jake.JAKE"), {"email"}),
        (new(), {"username", "email"}),
    ],
)
async def test_a_name_or_address_in_use_is_a_conflict_that_names_it(
    api: Api, again: dict[str, object], fields: set[str]
) -> None:
    """409 naming every field that is somebody else's, in whatever case it is written."""
    await api.call("POST", "/users", new(), expect=201)
    assert (await api.call("POST", "/users", again, expect=409))["errors"] == dict.fromkeys(fields, TAKEN)


@pytest.mark.parametrize(
    ("changed", "errors"),
    [
        ({"username": ""}, {"username": BLANK}),
        ({"username": "   "}, {"username": BLANK}),
        ({"username": None}, {"username": BLANK}),
        ({"username": "a/b"}, {"username": ["may have letters, digits, spaces and _ - . only"]}),
        ({"username": "\u0308a"}, {"username": ["may have letters, digits, spaces and _ - . only"]}),
        ({"username": ".."}, {"username": ["may have letters, digits, spaces and _ - . only"]}),
        ({"username": "x" * 65}, {"username": ["is too long (maximum is 64 characters)"]}),
        ({"username": 7}, {"username": ["must be a string"]}),
        ({"email": ""}, {"email": BLANK}),
        ({"email": "nobody"}, {"email": ["is invalid"]}),
        ({"email": "a@b@c"}, {"email": ["is invalid"]}),
        ({"email": ["a@b.c"]}, {"email": ["must be a string"]}),
        ({"email": "a\0@b.c"}, {"email": ["contains characters that cannot be stored"]}),
        ({"password": ""}, {"password": BLANK}),
        ({"password": "   "}, {"password": BLANK}),
        ({"password": "x" * 257}, {"password": ["is too long (maximum is 256 characters)"]}),
        ({"email": "", "password": ""}, {"email": BLANK, "password": BLANK}),
    ],
)
@one_shard
async def test_registration_names_every_field_that_is_wrong(
    api: Api, changed: dict[str, object], errors: dict[str, list[str]]
) -> None:
    user = {"username": "Jake", "email": "jake@jake.jake", "password": PASSWORD, **changed}
    assert (await api.call("POST", "/users", {"user": user}, expect=422))["errors"] == errors


@one_shard
async def test_missing_fields_are_blank(api: Api) -> None:
    """Absent fields, an absent wrapper and a wrapper of the wrong type are 422, each by its name."""
    answer = await api.call("POST", "/users", {"user": {}}, expect=422)
    assert answer["errors"] == {"username": BLANK, "email": BLANK, "password": BLANK}
    assert (await api.call("POST", "/users", {}, expect=422))["errors"] == {"user": BLANK}
    assert (await api.call("POST", "/users", {"user": []}, expect=422))["errors"] == {
        "user": ["must be an object"]
    }


@pytest.mark.parametrize("password", ["x", "p w", " x ", "é" * 256, "パスワード"])
@one_shard
async def test_any_password_that_is_not_blank_signs_in(api: Api, password: str) -> None:
    """The specification knows no minimum. Spaces count: they are not trimmed."""
    await api.call("POST", "/users", new(password=password), expect=201)
    user = {"email": "jake@jake.jake", "password": password}
    await api.call("POST", "/users/login", {"user": user}, expect=200)
    if len(password) < 256:
        user["password"] += "x"
        await api.call("POST", "/users/login", {"user": user}, expect=401)


@one_shard
async def test_unknown_fields_are_ignored(api: Api) -> None:
    body = {"user": {**new()["user"], "admin": True}, "more": 1}  # type: ignore[dict-item]
    await api.call("POST", "/users", body, expect=201)


async def test_login_takes_the_address_in_any_case(api: Api) -> None:
    jake = await api.person("Jake")
    user = {"email": jake.email.upper(), "password": PASSWORD}
    answer = await api.call("POST", "/users/login", {"user": user}, expect=200)
    assert answer["user"]["username"] == "Jake"
    await api.call("GET", "/user", by=answer["user"]["token"], expect=200)


async def test_wrong_credentials_are_one_answer(api: Api) -> None:
    """401, the same for an unknown address and for a wrong password."""
    jake = await api.person("Jake")
    for email, password in ((jake.email, PASSWORD + "!"), ("nobody@example.com", PASSWORD)):
        user = {"email": email, "password": password}
        answer = await api.call("POST", "/users/login", {"user": user}, expect=401)
        assert answer["errors"] == {"credentials": ["invalid"]}


async def test_login_hashes_for_unknown_addresses_too(api: Api) -> None:
    """An unknown address costs one Argon2 run like a known one: Server-Timing shows the hash."""
    jake = await api.person("Jake")
    for email in (jake.email, "nobody@example.com"):
        user = {"email": email, "password": "wrong password"}
        response = await api.send("POST", "/users/login", {"user": user})
        assert response.status_code == 401
        assert "hash;" in response.headers["server-timing"]


@one_shard
async def test_login_without_credentials_names_them(api: Api) -> None:
    answer = await api.call("POST", "/users/login", {"user": {"email": "", "password": ""}}, expect=422)
    assert answer["errors"] == {"email": BLANK, "password": BLANK}
    answer = await api.call("POST", "/users/login", {"user": {"email": "a@b.c"}}, expect=422)
    assert answer["errors"] == {"password": BLANK}


@pytest.mark.parametrize("scheme", ["Token", "Bearer", "token"])
@one_shard
async def test_both_schemes_of_the_header_sign_in(api: Api, scheme: str) -> None:
    jake = await api.person("Jake")
    headers = {"Authorization": f"{scheme} {jake.token}"}
    await api.call("GET", "/user", headers=headers, expect=200)


@pytest.mark.parametrize(
    "header",
    [None, "", "Token", "Token ", "Basic YTpi", "Token null", "Token undefined", "Bearer null", "null"],
)
@one_shard
async def test_no_token_is_missing(api: Api, header: str | None) -> None:
    """So are the texts that front ends send when nobody has signed in; where none is needed, all is well."""
    headers = {} if header is None else {"Authorization": header}
    await api.person("Jake")
    for path in ("/articles", "/profiles/Jake", "/tags"):
        await api.call("GET", path, headers=headers, expect=200)
    for method, path in (("GET", "/user"), ("PUT", "/user"), ("GET", "/articles/feed")):
        response = await api.send(method, path, headers=headers)
        assert response.status_code == 401
        assert response.json()["errors"] == {"token": ["is missing"]}
        assert response.headers["www-authenticate"].startswith("Token")


async def test_a_token_that_does_not_pass_is_refused(api: Api) -> None:
    """Also where none is needed, so that a client learns that it is signed out.

    Only where the specification lists no 401 it counts as none.
    """
    jake = await api.person("Jake")
    slug = (await api.article(jake))["slug"]
    head, claims, signature = jake.token.split(".")
    forged = f"{head}.{claims}.{signature[:-4]}AAAA"
    for token in (forged, "nonsense", jake.token + "x"):
        for path in ("/user", "/articles", "/profiles/Jake", f"/articles/{slug}/comments"):
            answer = await api.call("GET", path, by=token, expect=401)
            assert answer["errors"] == {"token": ["is invalid"]}
        article = (await api.call("GET", f"/articles/{slug}", by=token, expect=200))["article"]
        assert (article["favorited"], article["author"]["following"]) == (False, False)
        await api.call("GET", "/articles/nothing", by=token, expect=404)
        await api.call("GET", "/tags", by=token, expect=200)


async def test_a_token_of_another_use_is_refused(api: Api) -> None:
    """The platform signs other tokens with the same keys; only those for the API pass."""
    jake = await api.person("Jake")
    subject = api.platform.tokens.verify(jake.token).identity.subject
    await api.call("GET", "/user", by=api.platform.tokens.issue(subject), expect=401)
    await api.call("GET", "/user", by=api.platform.tokens.issue(subject, scopes=["api"]), expect=200)


async def test_a_token_for_nobody_is_refused(api: Api) -> None:
    token = api.platform.tokens.issue(5 << 10, scopes=["api"])
    assert (await api.call("GET", "/user", by=token, expect=401))["errors"] == {"token": ["is invalid"]}
    body = {"user": {"bio": "x"}}
    await api.call("PUT", "/user", body, by=token, expect=401)


async def test_nothing_is_written_in_the_name_of_nobody(api: Api) -> None:
    """A token outlives the database that it was made for; nothing then comes from an unknown author."""
    slug = (await api.article(await api.person("Jake")))["slug"]
    token = api.platform.tokens.issue(5 << 10, scopes=["api"])
    article = {"article": {"title": "By nobody", "description": "d", "body": "b", "tagList": ["ghost"]}}
    writes = [
        ("POST", "/articles", article),
        ("POST", f"/articles/{slug}/comments", {"comment": {"body": "Boo"}}),
        ("POST", f"/articles/{slug}/favorite", None),
        ("DELETE", f"/articles/{slug}/favorite", None),
        ("POST", "/profiles/Jake/follow", None),
        ("DELETE", "/profiles/Jake/follow", None),
    ]
    for method, path, body in writes:
        answer = await api.call(method, path, body, by=token, expect=401)
        assert answer["errors"] == {"token": ["is invalid"]}
    assert (await api.call("GET", "/articles", expect=200))["articlesCount"] == 1
    assert (await api.call("GET", "/tags", expect=200))["tags"] == []
    assert (await api.call("GET", f"/articles/{slug}/comments", expect=200))["comments"] == []
    assert (await api.call("GET", f"/articles/{slug}", expect=200))["article"]["favoritesCount"] == 0
    assert await api.platform.database("users").scatter("select followee_id from users.follow") == []


async def test_the_lifetime_of_tokens_is_a_setting(urls: list[str], home: Path) -> None:
    async with serving(urls, home, settings=Settings(token_lifetime=120)) as api:
        claims = api.platform.tokens.verify((await api.person()).token)
        assert claims.exp - claims.iat == 120


async def test_updating_changes_what_is_given_and_nothing_else(api: Api) -> None:
    jake = await api.person("Jake")
    user = (await api.call("PUT", "/user", {"user": {"bio": "I work here"}}, by=jake, expect=200))["user"]
    assert (user["bio"], user["username"], user["email"]) == ("I work here", "Jake", jake.email)
    body = {"user": {"image": "https://i/x.png"}}
    user = (await api.call("PUT", "/user", body, by=jake, expect=200))["user"]
    assert (user["bio"], user["image"]) == ("I work here", "https://i/x.png")
    user = (await api.call("PUT", "/user", {"user": {"username": "James"}}, by=jake, expect=200))["user"]
    assert (user["username"], user["bio"]) == ("James", "I work here")
    assert (await api.call("GET", "/user", by=jake, expect=200))["user"]["username"] == "James"


@pytest.mark.parametrize("empty", [None, ""])
async def test_null_and_empty_clear_bio_and_image(api: Api, empty: str | None) -> None:
    jake = await api.person("Jake")
    body = {"user": {"bio": "something", "image": "https://i/x.png"}}
    await api.call("PUT", "/user", body, by=jake, expect=200)
    body = {"user": {"bio": empty, "image": empty}}  # type: ignore[dict-item]
    user = (await api.call("PUT", "/user", body, by=jake, expect=200))["user"]
    assert (user["bio"], user["image"]) == (None, None)


async def test_a_new_name_frees_the_old_one(api: Api) -> None:
    """After a rename the old name is nobody's, the new one is taken, and the token still works."""
    jake = await api.person("Jake")
    body = {"user": {"username": "James", "email": "james@example.com"}}
    await api.call("PUT", "/user", body, by=jake, expect=200)
    await api.call("GET", "/profiles/Jake", expect=404)
    await api.call("GET", "/profiles/James", expect=200)
    await api.person("Jake")
    answer = await api.call("POST", "/users", new("james", "x@y.z"), expect=409)
    assert answer["errors"] == {"username": TAKEN}


async def test_a_name_may_change_its_case(api: Api) -> None:
    jake = await api.person("jake")
    user = (await api.call("PUT", "/user", {"user": {"username": "Jake"}}, by=jake, expect=200))["user"]
    assert user["username"] == "Jake"


async def test_a_new_password_replaces_the_old_one(api: Api) -> None:
    jake = await api.person("Jake")
    await api.call("PUT", "/user", {"user": {"password": "another password"}}, by=jake, expect=200)
    old = {"user": {"email": jake.email, "password": PASSWORD}}
    await api.call("POST", "/users/login", old, expect=401)
    now = {"user": {"email": jake.email, "password": "another password"}}
    await api.call("POST", "/users/login", now, expect=200)


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({}, {"user": ["must have at least one field to change"]}),
        ({"unknown": 1}, {"user": ["must have at least one field to change"]}),
        ({"username": None}, {"username": BLANK}),
        ({"username": " "}, {"username": BLANK}),
        ({"email": ""}, {"email": BLANK}),
        ({"email": "no address"}, {"email": ["is invalid"]}),
        ({"password": None}, {"password": BLANK}),
        ({"password": " "}, {"password": BLANK}),
        ({"password": "x" * 257}, {"password": ["is too long (maximum is 256 characters)"]}),
        ({"bio": 5}, {"bio": ["must be a string"]}),
        ({"bio": "x" * 5001}, {"bio": ["is too long (maximum is 5000 characters)"]}),
        ({"image": "x" * 2049}, {"image": ["is too long (maximum is 2048 characters)"]}),
        ({"bio": "a\0b"}, {"bio": ["contains characters that cannot be stored"]}),
    ],
)
@one_shard
async def test_an_update_names_every_field_that_is_wrong(
    api: Api, changes: dict[str, object], errors: dict[str, list[str]]
) -> None:
    jake = await api.person("Jake")
    assert (await api.call("PUT", "/user", {"user": changes}, by=jake, expect=422))["errors"] == errors
    assert (await api.call("GET", "/user", by=jake, expect=200))["user"]["username"] == "Jake"


async def test_an_update_to_somebody_elses_name_is_refused(api: Api) -> None:
    """422: the specification knows no conflict for updates. It names every field that is taken."""
    jake, anna = await api.person("Jake"), await api.person("Anna")
    answer = await api.call("PUT", "/user", {"user": {"username": "ANNA"}}, by=jake, expect=422)
    assert answer["errors"] == {"username": TAKEN}
    body = {"user": {"username": "anna", "email": anna.email}}
    answer = await api.call("PUT", "/user", body, by=jake, expect=422)
    assert answer["errors"] == {"username": TAKEN, "email": TAKEN}
    body = {"user": {"username": "Free", "email": anna.email}}
    await api.call("PUT", "/user", body, by=jake, expect=422)
    await api.person("Free")  # the name that the failed update claimed is free again


async def test_profiles_are_public_and_found_in_any_case(api: Api) -> None:
    jake = await api.person("Jake")
    await api.call("PUT", "/user", {"user": {"bio": "Hello"}}, by=jake, expect=200)
    answer = await api.call("GET", "/profiles/jake", expect=200)
    assert answer["profile"] == {"username": "Jake", "bio": "Hello", "image": None, "following": False}


@pytest.mark.parametrize("name", ["Nobody", "%00", "%F0%9F%8E%89", "x" * 300, "%ED%A0%80", "a%2Fb", "..%2f"])
@one_shard
async def test_a_profile_of_nobody_is_not_found(api: Api, name: str) -> None:
    jake = await api.person("Jake")
    response = await api.send("GET", f"/profiles/{name}")
    assert response.status_code == 404
    if "/" not in response.request.url.path.removeprefix("/api/profiles/"):
        assert response.json()["errors"] == {"profile": ["not found"]}
        for method in ("POST", "DELETE"):
            answer = await api.call(method, f"/profiles/{name}/follow", by=jake, expect=404)
            assert answer["errors"] == {"profile": ["not found"]}


@pytest.mark.parametrize("name", ["Jörg", "Jo\u0308rg", "日本 語", "हिन्दी", "ภาษาไทย", "_a.b-c", "Zoë 2"])
async def test_names_of_any_script_are_part_of_addresses(api: Api, name: str) -> None:
    """Registered, found by path and by filter, followed; however its characters are composed."""
    jake, anna = await api.person("Jake"), await api.call("POST", "/users", new(name), expect=201)
    for form in ("NFC", "NFD"):
        path = f"/profiles/{quote(unicodedata.normalize(form, name))}"
        assert (await api.call("POST", f"{path}/follow", by=jake, expect=200))["profile"]["username"] == name
    await api.article(Person(anna["user"]["token"], name, "jake@jake.jake"), "From afar")
    for params in ({"author": name}, {"author": name.upper()}):
        assert await api.titles("/articles", **params) == (["From afar"], 1)
    assert await api.titles("/articles/feed", by=jake) == (["From afar"], 1)


async def test_following_shows_to_the_follower_alone(api: Api) -> None:
    """Following and unfollowing are idempotent; others see no difference."""
    jake, anna = await api.person("Jake"), await api.person("Anna")
    for _ in range(2):
        assert (await api.call("POST", "/profiles/Anna/follow", by=jake, expect=200))["profile"]["following"]
    assert (await api.call("GET", "/profiles/Anna", by=jake, expect=200))["profile"]["following"]
    assert not (await api.call("GET", "/profiles/Anna", expect=200))["profile"]["following"]
    assert not (await api.call("GET", "/profiles/Jake", by=anna, expect=200))["profile"]["following"]
    for _ in range(2):
        answer = await api.call("DELETE", "/profiles/Anna/follow", by=jake, expect=200)
        assert not answer["profile"]["following"]
    assert not (await api.call("GET", "/profiles/Anna", by=jake, expect=200))["profile"]["following"]


async def test_nobody_follows_themselves(api: Api) -> None:
    jake = await api.person("Jake")
    answer = await api.call("POST", "/profiles/jake/follow", by=jake, expect=422)
    assert answer["errors"] == {"profile": ["is your own"]}


async def test_following_needs_a_token(api: Api) -> None:
    await api.person("Anna")
    for method in ("POST", "DELETE"):
        answer = await api.call(method, "/profiles/Anna/follow", expect=401)
        assert answer["errors"] == {"token": ["is missing"]}
