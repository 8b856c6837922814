"""configure, register, check and delete: create and remove an endpoint. Heavy imports happen in the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mep.cli.common import epilog, json_option, locate, name_argument, read_token, token_option
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.globus_options import BooleanOrFlag, globus_policy_options
from mep.cli.output import emit, fields_text, warn
from mep.config import paths as names

if TYPE_CHECKING:
    from mep.config.parser import ConfigDocument
    from mep.config.paths import EndpointPaths
    from mep.config.registration import Registration


_FILE = click.Path(exists=True, dir_okay=False)


def _help_config(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # click's signature
    if not value or ctx.resilient_parsing:
        return
    from mep.config.option_docs import help_text

    click.echo(help_text())
    ctx.exit()


@click.command(
    cls=BooleanOrFlag,
    short_help="Write a new endpoint's files and register it.",
    epilog=epilog(
        "mep configure site --multi-user --relay https://relay.example.org --token-file ~/token",
        "mep configure site --multi-user --domain example.edu --relay https://relay.example.org",
        "MEP_TOKEN=... mep configure laptop --relay http://127.0.0.1:8650",
    ),
)
@name_argument
@click.option("--multi-user", type=bool, default=False, metavar="[BOOLEAN]",
              help="Serve many people, each as their own account (root only). A value is optional.")  # fmt: skip
@click.option("--domain", "domains", multiple=True, metavar="DOMAIN",
              help="Map name@DOMAIN to the account `name`; with --multi-user. May be repeated.")  # fmt: skip
@click.option("--relay", "relay_url", metavar="URL", envvar="MEP_RELAY_URL", show_envvar=True,
              help="The relay, https except on this machine.")  # fmt: skip
@token_option
@click.option("--display-name", help="The name shown to people.")
@click.option(
    "--manager-account",
    metavar="ACCOUNT",
    help="An existing account for the manager, instead of a new one for this endpoint; with --multi-user.",
)
@click.option("--mapper-account", metavar="ACCOUNT", help="The same for the mapper.")
@click.option("--contact-email", metavar="ADDRESS", help="The administrators' address (`email`).")
@click.option("--public/--private", "public", default=None, help="Show the endpoint to all in the relay's list.")
@click.option("--endpoint-uuid", metavar="UUID", type=click.UUID, help="The id to register, instead of a new one.")
@click.option("--endpoint-config", "--core-config", "--manager-config", "endpoint_config", type=_FILE,
              help="A config.yaml to use instead of a new one.")  # fmt: skip
@click.option("--template-config", type=_FILE, help="A user_config_template.yaml.j2 to use instead of the default.")
@click.option("--schema-config", type=_FILE, help="A user_config_schema.json to use instead of the default.")
@click.option("--user-env-config", type=_FILE, help="A user_environment.yaml to use instead of the default.")
@click.option("--id-mapping-config", type=_FILE, help="An identity_mapping.json to use; with --multi-user.")
@click.option("--allowed-domains", metavar="DOMAINS", help="Admit only people of these domains, separated by commas.")
@click.option("--excluded-domains", metavar="DOMAINS", help="Admit no people of these domains.")
@globus_policy_options
@click.option("--help-config", is_flag=True, is_eager=True, expose_value=False, callback=_help_config,
              help="List the keys of config.yaml and exit.")  # fmt: skip
@json_option
def configure(
    name: str,
    multi_user: bool,  # click passes options by name
    domains: tuple[str, ...],
    relay_url: str | None,
    token_file: str | None,
    display_name: str | None,
    manager_account: str | None,
    mapper_account: str | None,
    contact_email: str | None,
    public: bool | None,
    endpoint_uuid: uuid.UUID | None,
    endpoint_config: str | None,
    template_config: str | None,
    schema_config: str | None,
    user_env_config: str | None,
    id_mapping_config: str | None,
    allowed_domains: str | None,
    excluded_domains: str | None,
    as_json: bool,
) -> None:
    """Create endpoint NAME: write its five files and register it with the relay.

    With --multi-user, two system accounts are created for its manager and its mapper.
    """
    from mep.cli.endpoint_dirs import refuse_existing
    from mep.cli.registration import endpoint_id

    where, _ = locate(name)
    _check_who(where, multi_user=multi_user)
    mapping = _domain_mapping(domains, multi_user=multi_user)
    if id_mapping_config is not None and (mapping or not multi_user):
        raise CliFailed("--id-mapping-config: goes with --multi-user, and without --domain", Exit.USAGE)
    files = _given_files(template_config, schema_config, user_env_config, id_mapping_config)
    files |= {names.MAPPING: mapping} if mapping else {}
    values: dict[str, Any] = {"relay_url": relay_url, "display_name": display_name, "multi_user": multi_user or None}
    values |= {"email": contact_email, "public": public}
    values |= {"allowed_domains": _listed(allowed_domains), "excluded_domains": _listed(excluded_domains)}
    document, text = _new_config(where, multi_user, values, endpoint_config)
    chosen = chosen_accounts(document, multi_user, manager_account, mapper_account)
    relay = relay_of(where, document, relay_url)
    token = read_token(token_file)
    refuse_existing(where)
    new_id = str(endpoint_uuid) if endpoint_uuid else endpoint_id(where)
    document = write_files(where, text, files, chosen, new_id)
    warn(document.warnings)
    registration = register_new(where, document, relay, token, new_id)
    value = {**registered_value(where, registration), "config_dir": str(where.config_dir)}
    emit(value, _configured_text(where, registration, multi_user=multi_user, domains=domains), as_json=as_json)


def _check_who(where: EndpointPaths, *, multi_user: bool) -> None:
    if multi_user and not where.privileged:
        raise CliFailed(
            "a multi-user endpoint must be able to become other accounts: run this as root. "
            "Without --multi-user you get an endpoint that serves you alone.",
            Exit.USAGE,
        )
    if not multi_user and where.privileged:
        raise CliFailed(
            "a single-user endpoint of root would run functions as root: add --multi-user, or run this as the person "
            "whose endpoint it is.",
            Exit.USAGE,
        )


def _domain_mapping(domains: tuple[str, ...], *, multi_user: bool) -> str | None:
    from identity.document import MappingDocumentInvalid
    from identity.domain import file_text

    if not domains:
        return None
    if not multi_user:
        raise CliFailed("--domain maps many people to accounts: it goes with --multi-user", Exit.USAGE)
    try:
        return file_text(domains)
    except MappingDocumentInvalid as error:
        raise CliFailed(f"--domain: {error}", Exit.USAGE) from None


def _given_files(
    template: str | None, schema: str | None, environment: str | None, mapping: str | None
) -> dict[str, str]:
    """Return the files that take the place of the default ones, by their names here."""
    given = {names.TEMPLATE: template, names.SCHEMA: schema, names.ENVIRONMENT: environment, names.MAPPING: mapping}
    return {name: _read_config(path) for name, path in given.items() if path is not None}


def _new_config(
    where: EndpointPaths, multi_user: bool, values: Mapping[str, Any], given: str | None
) -> tuple[ConfigDocument, str]:
    from mep.config.option_docs import commented_config
    from mep.config.parser import read_document

    if given is not None:
        text = _read_config(given)
        document = read_document(text, given)
        for key, value in values.items():
            if value is None or key == "relay_url" or document.values.get(key, value) == value:
                continue
            raise CliFailed(
                f"{given}: {key}: is {document.values[key]}, and --{_option(key)} says otherwise", Exit.USAGE
            )
        if document.options.multi_user and not multi_user:
            raise CliFailed(f"{given}: multi_user: is True, and --multi-user says otherwise", Exit.USAGE)
        for key, value in values.items():
            if value is not None and key not in document.values:
                text = _with_value(text, key, value)
        return read_document(text, given), text
    text = commented_config({key: value for key, value in values.items() if value is not None})
    return read_document(text, str(where.config)), text


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [one.strip() for one in text.split(",") if one.strip()]


def _option(key: str) -> str:
    return {"email": "contact-email"}.get(key, key.replace("_", "-"))


def _read_config(path: str) -> str:
    from mep.config.template_files import text_of

    return text_of(Path(path).read_bytes(), path)


def relay_of(where: EndpointPaths, document: ConfigDocument, relay_url: str | None) -> str:
    """Return the relay's URL, of --relay or of config.yaml. Raises CliFailed."""
    from mep.config.options import relay_url_problem

    relay = relay_url or document.options.relay_url
    if relay is None:
        raise CliFailed(f"which relay? Give --relay URL, or set relay_url in {where.config}", Exit.USAGE)
    if problem := relay_url_problem(relay):
        raise CliFailed(f"--relay {relay}: {problem}", Exit.USAGE)
    return relay


def chosen_accounts(
    document: ConfigDocument, multi_user: bool, manager: str | None, mapper: str | None
) -> dict[str, str | None]:
    """Return the account for each option that config.yaml doesn't set; None if it is to be created."""
    given = {"manager_account": manager, "mapper_account": mapper}
    for key, account in given.items():
        option = f"--{key.replace('_', '-')}"
        if account and not multi_user:
            raise CliFailed(f"{option}: goes with --multi-user", Exit.USAGE)
        if account and key in document.values:
            raise CliFailed(f"{option}: the configuration sets {key} already", Exit.USAGE)
    return {key: account for key, account in given.items() if key not in document.values} if multi_user else {}


def write_files(
    where: EndpointPaths, text: str, files: Mapping[str, str], chosen: dict[str, str | None], new_id: str
) -> ConfigDocument:
    """Create missing accounts and write the five files, or do neither. Return the content of config.yaml."""
    from mep.cli.endpoint_dirs import write_five_files
    from mep.cli.helper_accounts import make_account, remove_accounts
    from mep.cli.registration import accounts_for
    from mep.config.parser import read_document

    try:
        for key, account in chosen.items():
            text = _with_value(text, key, account or make_account(where, key, new_id))
        document = read_document(text, str(where.config))
        write_five_files(where, text, files, mapper=accounts_for(where, document.options).mapper)
    except BaseException:
        if chosen:
            warn(remove_accounts(where))
        raise
    return document


def _with_value(text: str, key: str, value: Any) -> str:
    """Return config.yaml with a key set: at its commented-out line if there is one, else at the end."""
    line = f"{key}: {json.dumps(value)}"
    replaced, count = re.subn(rf"(?m)^#{key}:.*$", lambda _: line, text, count=1)
    return replaced if count else f"{text.rstrip()}\n{line}\n"


def register_new(where: EndpointPaths, document: ConfigDocument, relay: str, token: str, new_id: str) -> Registration:
    """Register an endpoint with new files. Raises CliFailed with the command that resumes."""
    try:
        return _register(where, document, relay, token, new_id=new_id)
    except CliFailed as error:
        raise CliFailed(
            f"{error.text}\nThe files in {where.config_dir} are written, the endpoint is not registered yet. "
            f"After fixing the cause (relay_url is in config.yaml): mep register {where.name} --token-file FILE",
            error.exit_code,
        ) from None


def _register(
    where: EndpointPaths, document: ConfigDocument, relay: str, token: str, *, new_id: str = "", expected: str = ""
) -> Registration:
    from mep.cli.registration import register as register_endpoint

    return register_endpoint(where, document.options, relay, token, new_id, expected)


def registered_value(where: EndpointPaths, registration: Registration) -> dict[str, str]:
    """Return what to print of a registration, as a value."""
    fingerprint = registration.relay_keys.fingerprint
    return {"name": where.name, "endpoint_id": registration.endpoint_id, "relay_key": fingerprint}


def registered_text(where: EndpointPaths, registration: Registration) -> str:
    """Return what to print of a registration, as text."""
    return (
        f"Endpoint {where.name} is registered: {registration.endpoint_id}\n"
        f"The relay's keys: {registration.relay_keys.fingerprint} (`mep-relay key` at the relay must print the same)"
    )


def _configured_text(
    where: EndpointPaths, registration: Registration, *, multi_user: bool, domains: tuple[str, ...]
) -> str:
    lines = [
        registered_text(where, registration),
        f"Its files are in {where.config_dir}. Next:",
    ]
    if multi_user and not domains:
        lines.append("  map identities to local accounts in identity_mapping.json (none is mapped so far);")
    if multi_user:
        lines.append(f"  mep map {where.name} --identity name@{(domains or ('example.edu',))[0]}, to try it;")
    lines += [
        "  look through user_config_template.yaml.j2, which says how tasks run;",
        f"  mep check {where.name}",
        f"  mep start {where.name} --detach",
    ]
    return "\n".join(lines)


@click.command(
    short_help="Register an endpoint that has its files.",
    epilog=epilog("mep register site --token-file ~/token", "mep register site --again"),
)
@name_argument
@token_option
@click.option("--relay", "relay_url", metavar="URL", help="The relay, if config.yaml doesn't name it.")
@click.option("--again", is_flag=True, help="Tell the relay about changes of the configuration.")
@click.option("--new-keys", is_flag=True, help="Register again with new keys (the endpoint must be stopped).")
@click.option("--new-id", is_flag=True, help="Register as a new endpoint with another id (it must be stopped).")
@click.option("--new-relay-key", metavar="FINGERPRINT", default="",
              help="Accept the relay's changed keys if this is their fingerprint: see `mep-relay key`.")  # fmt: skip
@json_option
def register(
    name: str,
    token_file: str | None,
    relay_url: str | None,
    again: bool,
    new_keys: bool,
    new_id: bool,
    new_relay_key: str,
    as_json: bool,
) -> None:
    """Register endpoint NAME, which has its files, with its relay, or resume a failed `configure`."""
    from mep.cli.admin_client import require_owner
    from mep.cli.monitor_control import refuse_second
    from mep.cli.registration import forget_id, forget_keys
    from mep.config.resolver import read_config

    where, _ = locate(name)
    require_owner(where)
    document = read_config(where)
    if where.registration.exists() and not (again or new_keys or new_id):
        raise CliFailed(
            f"endpoint {where.name} is registered already; to tell the relay of changes: "
            f"mep register {where.name} --again"
        )
    relay = relay_of(where, document, relay_url)
    warn(document.warnings)
    token = read_token(token_file)
    if new_keys or new_id:
        refuse_second(where)
        (forget_id if new_id else forget_keys)(where)
    registration = _register(where, document, relay, token, expected=new_relay_key)
    emit(registered_value(where, registration), registered_text(where, registration), as_json=as_json)


@click.command(short_help="Check all that a start would use.", epilog=epilog("mep check site", "mep check site --json"))
@name_argument
@click.option("--thorough", is_flag=True, help="Try as many options on the template as 5 minutes allow.")
@json_option
def check(name: str, thorough: bool, as_json: bool) -> None:
    """Read and check everything that endpoint NAME would start with, without starting it.

    The template is rendered too, by an account without privilege and with values made up from the schema.
    """
    check_endpoint(name, as_json=as_json, thorough=thorough)


def check_endpoint(name: str, *, as_json: bool = False, quiet: bool = False, thorough: bool = False) -> None:
    """Check an endpoint and print the result. Raises ConfigRefused and CliFailed for the first error."""
    from mep.cli.admin_client import require_reader
    from mep.cli.install_check import check_installation, unknown_names
    from mep.cli.remedies import at_keys, with_command
    from mep.cli.site_check import relay_notes, site_notes
    from mep.cli.template_check import try_template
    from mep.config.resolver import read_config, resolve, summary
    from mep.config.system_accounts import sharing_notes
    from mep.config.template_syntax import check_template

    where, roots = locate(name)
    require_reader(where)
    resolution = resolve(where, roots, log_to_file=False)
    check_template(where, resolution)
    notes = at_keys(where.config, read_config(where).lines, unknown_names(resolution.endpoint))
    notes += site_notes(where, resolution, os.geteuid())
    notes += [*relay_notes(where, resolution), *try_template(where, resolution, thorough=thorough)]
    if where.privileged:
        notes += sharing_notes(where, roots, resolution.endpoint)
        check_installation()
    value = summary(resolution)
    value["warnings"] = [with_command(one) for one in [*value["warnings"], *notes]]
    text = fields_text({key: item for key, item in value.items() if key != "warnings"})
    if not as_json:
        warn(value["warnings"])
    if quiet:
        return
    found = "no error found; see the warnings" if value["warnings"] else "no problem found"
    emit(value, f"{where.config_dir}: {found}\n{text}", as_json=as_json)


@click.command(
    short_help="Delete an endpoint at the relay and here.",
    epilog=epilog("mep delete site --token-file ~/token", "mep delete site --local-only --yes"),
)
@name_argument
@token_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Stop it if it runs. Delete it here even if the relay can't be told.")
@click.option("--local-only", is_flag=True, help="Do not tell the relay.")
@json_option
def delete(name: str, token_file: str | None, yes: bool, force: bool, local_only: bool, as_json: bool) -> None:
    """Delete endpoint NAME at the relay and here, with its configuration and the accounts that configure made."""
    from mep.boundary.runtime_files import running_monitor
    from mep.cli.admin_client import require_owner
    from mep.cli.helper_accounts import remove_accounts
    from mep.cli.monitor_control import stop
    from mep.config.paths import no_such_endpoint

    where, _ = locate(name)
    require_owner(where)
    if not where.config_dir.exists() and not where.state_dir.exists():
        raise no_such_endpoint(where)
    if running_monitor(where.runtime_dir) is not None and not force:
        raise CliFailed(f"endpoint {where.name} is running: run `mep stop {where.name}` first, or give --force")
    if not yes:
        click.confirm(f"Delete endpoint {where.name} and all files in {where.config_dir}?", abort=True, err=True)
    if not local_only and where.registration.exists():
        _unregister(where, token_file, force=force)
    stop(where, 60.0, kill=True)
    if where.privileged:
        warn(remove_accounts(where))
    for directory in (where.runtime_dir, where.state_dir, where.config_dir):
        if directory.exists():
            shutil.rmtree(directory)
    emit({"name": where.name, "deleted": True}, f"Endpoint {where.name} is deleted.", as_json=as_json)


def stop_remotely(where: EndpointPaths, token_file: str | None) -> str:
    """Have the relay stop the endpoint, wherever it runs; return its id. Raises CliFailed."""
    from mep.cli.registration import refusal, register_account
    from mep.cli.relay_answer import AnswerKind
    from mep.cli.relay_request import RelayCall, call_relay
    from mep.config.registration import read_registration

    registration = read_registration(where.registration, where.name)
    path = f"/v3/endpoints/{registration.endpoint_id}/stop"
    call = RelayCall(registration.relay_url, "POST", path, read_token(token_file))
    answer, _ = call_relay(call, register_account(where))
    if answer.kind is AnswerKind.REFUSED:
        raise refusal(registration.relay_url, answer)
    return registration.endpoint_id


def _unregister(where: EndpointPaths, token_file: str | None, *, force: bool) -> None:
    from mep.cli.registration import refusal, register_account
    from mep.cli.relay_answer import AnswerCode, AnswerKind
    from mep.cli.relay_request import RelayCall, call_relay
    from mep.config.registration import read_registration

    registration = read_registration(where.registration, where.name)
    path = f"/v2/endpoints/{registration.endpoint_id}"
    call = RelayCall(registration.relay_url, "DELETE", path, read_token(token_file))
    try:
        answer, _ = call_relay(call, register_account(where))
        if answer.kind is AnswerKind.REFUSED and answer.code is not AnswerCode.ENDPOINT_NOT_FOUND:
            raise refusal(registration.relay_url, answer)
    except CliFailed as error:
        if not force:
            remedy = "Nothing was deleted. To delete it here alone: --local-only"
            raise CliFailed(f"{error.text}\n{remedy}", error.exit_code) from None
        warn([f"{error.text}; deleted here alone"])
