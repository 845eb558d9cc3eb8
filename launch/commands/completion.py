"""widebatch completion SHELL: the script by which a shell completes commands, flags and the values of settings."""

from collections.abc import Sequence

from harness.config.flags import Parser
from harness.config.setting_values import choices
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS

BASH = """# eval "$(widebatch completion bash)"
_widebatch() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} offers=
    if [ "$COMP_CWORD" -eq 1 ]; then
        offers="{commands}"
    else
        case $before in
{values}
        esac
        if [ -z "$offers" ] && [ "${{word#-}}" != "$word" ]; then
            offers=$({{ widebatch "$command" --help-all || widebatch "$command" --help; }} 2>/dev/null |
                sed -nE 's/^ +(-[a-z], )?(--[^ ,=]+).*/\\2/p')
        fi
    fi
    COMPREPLY=()
    if [ -n "$offers" ]; then
        COMPREPLY=($(compgen -W "$offers" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _widebatch widebatch"""
ZSH = """# eval "$(widebatch completion zsh)"
autoload -Uz compinit bashcompinit && compinit && bashcompinit
"""
FISH = """# widebatch completion fish | source
function __widebatch_flags
    set -l command (commandline -opc)[2]
    begin; widebatch $command --help-all; or widebatch $command --help; end 2>/dev/null |
        string match -rg '^ +(?:-\\w, )?(--[^ ,=]+)'
end
complete -c widebatch -f -n __fish_use_subcommand -a "{commands}"
complete -c widebatch -n 'not __fish_use_subcommand; and string match -q -- "-*" (commandline -ct)' -a "(__widebatch_flags)"
{values}"""


def main(argv: Sequence[str]) -> int:
    """Print the script."""
    parser = Parser(prog="widebatch completion", description=COMMANDS["completion"], allow_abbrev=False)
    parser.add_argument(
        "shell", choices=("bash", "zsh", "fish"), help='to be read by the shell: eval "$(widebatch completion bash)"'
    )
    shell = parser.parse_args(argv).shell
    echo({"bash": _bash, "zsh": lambda: ZSH + _bash(), "fish": _fish}[shell]())
    return 0


def _bash() -> str:
    lines = [f'            --{name}) offers="{" ".join(values)}" ;;' for name, values in choices().items()]
    return BASH.format(commands=" ".join(COMMANDS), values="\n".join(lines))


def _fish() -> str:
    lines = [f"complete -c widebatch -x -l {name} -a '{' '.join(values)}'" for name, values in choices().items()]
    return FISH.format(commands=" ".join(COMMANDS), values="\n".join(lines))
