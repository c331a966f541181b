"""Completion in shells: what `finetooth --completion SHELL` prints, and what is offered for settings.

The shell asks this very program, in Typer's protocol: the environment has `_FINETOOTH_COMPLETE=complete_bash`
and the words so far, and standard output gets one offer per line. Where there is none, files are offered.
"""

import os
from collections.abc import Sequence
from enum import StrEnum

import typer

ASKED = "_FINETOOTH_COMPLETE"


class Shell(StrEnum):
    """The shells that can complete commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


# No space behind a key or a section, which go on.
_BASH = """\
_finetooth_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        _FINETOOTH_COMPLETE=complete_bash "$1" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi
}
complete -o default -F _finetooth_completion finetooth
"""
_ZSH = """\
#compdef finetooth
_finetooth_completion() {
    local -a whole begun
    local line
    for line in "${(@f)$(_TYPER_COMPLETE_ARGS="${(j: :)words[1,$CURRENT]}" \\
        _TYPER_COMPLETE_FISH_ACTION=get-args _FINETOOTH_COMPLETE=complete_fish $words[1] 2>/dev/null)}"; do
        line=${${line%%$'\\t'*}//:/\\\\:}${${(M)line:#*$'\\t'*}/#*$'\\t'/:}
        case ${line%%:*} in
            '') ;;
            *[=.]) begun+=("$line") ;;
            *) whole+=("$line") ;;
        esac
    done
    if (( $#whole + $#begun == 0 )); then _files; return; fi
    if (( $#begun )); then _describe -V finetooth begun -S ''; fi
    if (( $#whole )); then _describe -V finetooth whole; fi
}
compdef _finetooth_completion finetooth
"""
_FISH = """\
function __finetooth_complete
    set -l found (env _FINETOOTH_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \\
        _TYPER_COMPLETE_ARGS=(commandline -cp | string collect) finetooth 2>/dev/null)
    if test -n "$found"
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command finetooth --no-files --arguments '(__finetooth_complete)'
"""
_SCRIPTS = {Shell.BASH: _BASH, Shell.ZSH: _ZSH, Shell.FISH: _FISH}


def script_for(shell: Shell) -> str:
    """What makes a shell complete finetooth's commands, where it is evaluated."""
    return _SCRIPTS[shell]


def answer_shells() -> None:
    """Lets the command line answer a shell that asks; where none does, it costs nothing."""
    if ASKED in os.environ:
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """What a KEY=VALUE may become."""
    return _offered(context.params.get("overrides") or (), incomplete)


def complete_setting_behind_target(context: typer.Context, incomplete: str) -> list[str]:
    """The same where targets stand before the settings; of the first of them there is none."""
    words = context.params.get("targets") or ()
    return _offered(words, incomplete) if words else []


def _offered(before: Sequence[str], incomplete: str) -> list[str]:
    """What may stand behind these words.

    bash takes a word apart at `=`, and wants the last part: `optimizer=ad` comes as `optimizer`, `=`, `ad`,
    and `optimizer=` as `optimizer` alone.
    """
    from finetooth.config.completing import choices_of, completions, is_setting

    *earlier, last = ["", "", *before]
    if last == "=":
        return [choice for choice in choices_of(earlier[-1]) if choice.startswith(incomplete)]
    if earlier[-1] != "=" and is_setting(last):
        return choices_of(last)
    return completions(incomplete)
