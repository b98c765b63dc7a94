# Completion of pillm-chat, pillm-embed, pillm-bench, pillm-models and pillm-doctor.
_pillm_names() {
    pillm-models list --json 2>/dev/null | sed -n 's/^ *"name": "\(.*\)",$/\1/p'
}

_pillm() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=''
    COMPREPLY=()
    case $1:$prev in
    *:-m | *:--model) words=$(_pillm_names) ;;
    *:--pooling) words='mean cls last' ;;
    *pillm-models:pillm-models | *pillm-models:*/pillm-models) words='list add remove default enable disable path listen --help' ;;
    *pillm-models:remove | *pillm-models:default | *pillm-models:enable | *pillm-models:disable | *pillm-models:path | *pillm-models:listen)
        words=$(_pillm_names) ;;
    *pillm-models:add) mapfile -t COMPREPLY < <(compgen -f -X '!*.gguf' -- "$cur"; compgen -d -- "$cur"); return ;;
    *pillm-models:*) words='--name --force --json --no-wait --help' ;;
    *pillm-chat:*) words='--model --system --max-tokens --temperature --help' ;;
    *pillm-embed:*) words='--model --pooling --help' ;;
    *pillm-bench:*) words='--model --out --dry-run --self-test --help' ;;
    *pillm-doctor:*) words='--help' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -F _pillm pillm-chat pillm-embed pillm-bench pillm-models pillm-doctor
