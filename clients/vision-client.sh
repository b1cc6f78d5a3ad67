#!/usr/bin/env bash
# Asks a Florence Daemon, or another server with the same vision API, about one picture. Needs bash, curl, base64 and awk;
# jq is used where it is installed. It stands alone: copy it wherever you like.
#
#   vision-client.sh PROMPT IMAGE    prints what the server says of the picture
#   vision-client.sh prompts         prints the prompts it knows
#   vision-client.sh model           prints the name of its model
#
# VISION_HOST       the server, http://127.0.0.1:54880 without it
# VISION_TIMEOUT    seconds to wait for an answer, 120 without it
# FLORENCE_DAEMON_TOKEN, VISION_TOKEN    the server's token; the first one that is set is sent
#
# Exit codes: 0 answered; 1 this picture has no answer; 2 wrong use; 69 the server answers nobody (or is none).
set -u -o pipefail
export LC_ALL=C # bytes are bytes, in every awk and tr

EXIT_FAILED=1
EXIT_USAGE=2
EXIT_SERVER=69
# Seconds to ask a busy server again and again, and the longest pause in between, whatever it wants.
PATIENCE_S=600
LONGEST_PAUSE_S=30

timeout=${VISION_TIMEOUT:-120}
token=${FLORENCE_DAEMON_TOKEN:-${VISION_TOKEN:-}}
base=${VISION_HOST:-http://127.0.0.1:54880}
about= # what a message is about: the picture

main() {
  if [ $# = 1 ] && [ "$1" = prompts ]; then
    prepare
    print_list /prompts 'Available prompts:'
  elif [ $# = 1 ] && [ "$1" = model ]; then
    prepare
    print_list /model 'Model name:'
  elif [ $# = 2 ]; then
    about="$2: "
    check_image "$2"
    prepare
    write_question "$1" "$2"
    print_answer
  else
    usage
  fi
}

usage() {
  echo "Usage: ${0##*/} PROMPT IMAGE    for example: ${0##*/} CAPTION cat.jpg" >&2
  echo "       ${0##*/} prompts|model" >&2
  exit $EXIT_USAGE
}

# give_up CODE TEXT: what a server or a file's name says must not steer the terminal.
give_up() {
  local text="$about$2"
  printf 'vision-client.sh: %s\n' "${text//[[:cntrl:]]/?}" >&2
  exit "$1"
}

check_image() {
  [ -f "$1" ] || give_up $EXIT_FAILED 'there is no such file'
  [ -r "$1" ] || give_up $EXIT_FAILED 'it may not be read'
  [ -s "$1" ] || give_up $EXIT_FAILED 'it is empty'
}

# Checks what was set, and makes the directory for what is sent and answered, which nobody else may read.
prepare() {
  local tool
  for tool in curl base64 awk sed tr mktemp; do
    command -v "$tool" >/dev/null || give_up $EXIT_USAGE "$tool is needed and is not installed"
  done
  case $base in
    http://* | https://*) ;;
    *://*) give_up $EXIT_USAGE "VISION_HOST: $base is no address such as http://127.0.0.1:54880" ;;
    *) base=http://$base ;;
  esac
  base=${base%/}
  case $timeout in
    '' | *[!0-9]* | 0*) give_up $EXIT_USAGE "VISION_TIMEOUT: $timeout is no number of seconds" ;;
  esac
  work=$(umask 077 && mktemp -d "${TMPDIR:-/tmp}/vision-client.XXXXXX") || give_up $EXIT_USAGE 'no temporary directory'
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  write_settings
}

# What curl is told in a file, since everybody can read a command line.
write_settings() {
  : >"$work/settings"
  case $base in # no proxy could reach this machine's own server
    *://127.* | *://localhost | *://localhost[:/]* | *://\[::1\]*) echo 'noproxy = "*"' >>"$work/settings" ;;
  esac
  case $token in
    '') ;;
    *[!A-Za-z0-9._~+/=-]*) give_up $EXIT_USAGE 'the token holds what a header cannot carry' ;;
    *) printf 'header = "Authorization: Bearer %s"\n' "$token" >>"$work/settings" ;;
  esac
}

# write_question PROMPT IMAGE: the picture goes as it is, neither scaled nor turned. A redirection takes any file's name.
write_question() {
  {
    printf '{"prompt":"%s","image":"' "$(spell_prompt "$1")" &&
      base64 <"$2" | tr -d '\r\n' &&
      printf '"}'
  } >"$work/question" || give_up $EXIT_FAILED 'it cannot be read'
}

# spell_prompt PROMPT: caption, <CAPTION> and "<OD> a cat" as `<CAPTION>` and `<OD> a cat`, within quotes in JSON.
spell_prompt() {
  local name rest
  case $1 in
    '<'*) name=${1%%>*} name=${name#<} rest=${1#*>} ;;
    *) name=${1%% *} rest=${1#"$name"} ;;
  esac
  printf '<%s>%s' "$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')" "$rest" |
    tr '\t\n' '  ' | tr -d '[:cntrl:]' | sed 's/[\\"]/\\&/g'
}

# ask PATH [CURL OPTION...]: leaves the answer in $work/body and its status in $status, waiting while the server is busy.
ask() {
  local path=$1 waited=0 pause told
  shift
  while :; do
    send "$path" "$@"
    case $status in
      429 | 503) pause=$(read_pause) ;;
      *) return ;;
    esac
    if [ -z "$pause" ] || [ $((waited + pause)) -gt $PATIENCE_S ]; then
      return
    fi
    told=$(explain)
    printf 'vision-client.sh: %s; asked again in %s s\n' "${told//[[:cntrl:]]/?}" "$pause" >&2
    sleep "$pause"
    waited=$((waited + pause))
  done
}

send() {
  local path=$1 told code
  shift
  told=$(curl -q --silent --show-error --globoff --connect-timeout 10 --max-time "$timeout" --config "$work/settings" \
    --dump-header "$work/head" --output "$work/body" --write-out '%{http_code} %{time_connect}' "$@" \
    "$base$path" 2>"$work/trouble")
  code=$?
  status=${told%% *}
  case $code in
    0) return ;;
    28) case ${told#* } in
      0 | 0.000 | 0.000000) ;; # not even connected
      *) give_up $EXIT_FAILED "no answer from $base within $timeout s. The server may be downloading its model; VISION_TIMEOUT=600 waits longer" ;;
    esac ;;
    18 | 52 | 55 | 56) give_up $EXIT_FAILED "$base broke off: $(cat "$work/trouble")" ;;
  esac
  give_up $EXIT_SERVER "no server answers at $base: $(cat "$work/trouble")"
}

# The seconds that Retry-After asks for; nothing where there is none. A date is not reckoned with.
read_pause() {
  local wanted
  wanted=$(sed -n 's/^[Rr][Ee][Tt][Rr][Yy]-[Aa][Ff][Tt][Ee][Rr]:[[:space:]]*\(.*[^[:space:]]\)[[:space:]]*$/\1/p' "$work/head" | tail -n 1)
  case $wanted in
    '') ;;
    *[!0-9]*) echo 5 ;;
    0 | 00*) echo 1 ;;
    ?????*) echo $LONGEST_PAUSE_S ;;
    *) echo $((10#$wanted < LONGEST_PAUSE_S ? 10#$wanted : LONGEST_PAUSE_S)) ;;
  esac
}

# What the server says of its error; a proxy's page is not worth showing.
explain() {
  json_text detail 2>/dev/null || json_text error 2>/dev/null || echo "$status, and no reason that can be read"
}

# Ends with what an answer that is no success means: for this picture alone, for this prompt, or for everybody.
refuse() {
  local told
  told=$(explain)
  case $status:$told in
    400:'Invalid prompt'*) give_up $EXIT_USAGE "$told" ;;
    401:*) give_up $EXIT_SERVER "$base wants its token; set FLORENCE_DAEMON_TOKEN or VISION_TOKEN" ;;
    413:*) give_up $EXIT_FAILED "the picture is too large for $base: $told" ;;
    400:* | 415:* | 422:* | 500:* | 504:*) give_up $EXIT_FAILED "$told" ;;
    *) give_up $EXIT_SERVER "$base: $status: $told" ;;
  esac
}

# print_list PATH TITLE: the title is for a person's eyes, so it stays out of pipes.
print_list() {
  ask "$1"
  [ "$status" = 200 ] || refuse
  if ! json_text '' >"$work/text" || ! has_words; then
    give_up $EXIT_SERVER "what answers at $base is not a vision server"
  fi
  [ ! -t 1 ] || echo "$2" >&2
  tr -d '<>' <"$work/text"
  echo
}

print_answer() {
  local flaw
  ask /process_image --header 'Content-Type: application/json' --data-binary "@$work/question"
  [ "$status" = 200 ] || refuse
  if ! json_text result >"$work/text"; then
    json_text '' >/dev/null || give_up $EXIT_SERVER "what answers at $base is not a vision server"
    give_up $EXIT_FAILED 'the server sent no result'
  fi
  # Florence Daemon says so itself when an answer goes round in circles, say.
  flaw=$(json_text flaw) && give_up $EXIT_FAILED "the server does not trust its own answer: $flaw"
  has_words || give_up $EXIT_FAILED "the server's result is empty"
  cat "$work/text"
  echo
}

has_words() {
  [ -n "$(tr -d '[:space:]' <"$work/text")" ]
}

# json_text NAME: prints the member NAME of the object that was answered, or, without a name, the whole value: a string
# as its text, a list of strings one to a line, boxes and the like as JSON; without control characters but tab and line
# end. Fails when the answer is not JSON, or has no such thing: null, true and numbers are no text.
json_text() {
  if command -v jq >/dev/null; then
    jq -e -j -s --arg name "$1" "$JQ_TEXT" <"$work/body" 2>/dev/null
  else
    json_text_by_awk "$1"
  fi | tr -d '\000-\010\013-\037\177'
}

json_text_by_awk() {
  local escaped
  escaped=$(awk -v name="$1" "$AWK_TEXT" <"$work/body") && printf '%b' "$escaped"
}

# shellcheck disable=SC2016 # the variable is jq's
JQ_TEXT='
if length == 1 then .[0] else empty end
| if $name == "" then . elif type == "object" then .[$name] else empty end
| if type == "string" then .
  elif type == "array" and all(.[]; type == "string") then join("\n")
  elif type == "object" or type == "array" then tojson
  else empty end'

# The same without jq. What it prints is for printf %b: what is no ASCII comes as \0303\0251, since an awk may know
# characters or bytes, and a backslash as two.
# shellcheck disable=SC2016 # the variable is awk's
AWK_TEXT='
function stop() { exit 1 }
function blank() { while (at <= size && index(" \t\r\n", substr(text, at, 1))) at++ }
function octal(byte) { return sprintf("\\0%03o", byte) }
function utf8(code) {
  if (code < 128) return octal(code)
  if (code < 2048) return octal(192 + int(code / 64)) octal(128 + code % 64)
  if (code < 65536) return octal(224 + int(code / 4096)) octal(128 + int(code / 64) % 64) octal(128 + code % 64)
  return octal(240 + int(code / 262144)) octal(128 + int(code / 4096) % 64) octal(128 + int(code / 64) % 64) octal(128 + code % 64)
}
function hex4(  code, count, digit) {
  for (count = 0; count < 4; count++) {
    digit = at > size ? 0 : index("0123456789abcdef", tolower(substr(text, at++, 1)))
    if (!digit) stop()
    code = code * 16 + digit - 1
  }
  return code
}
function character(  code, low) {
  code = hex4()
  if (code >= 55296 && code < 56320 && substr(text, at, 2) == "\\u") {
    at += 2
    low = hex4()
    if (low >= 56320 && low < 57344) return utf8(65536 + (code - 55296) * 1024 + low - 56320)
    at -= 6
  }
  return utf8(code >= 55296 && code < 57344 ? 65533 : code)
}
function string(  start, out, c) {
  for (;;) {
    start = at
    for (c = ""; at <= size; at++) {
      c = substr(text, at, 1)
      if (c == "\"" || c == "\\" || c < " ") break
    }
    if (at > size || c < " ") stop()
    out = out substr(text, start, at++ - start)
    if (c == "\"") return out
    c = substr(text, at++, 1)
    if (c == "u") out = out character()
    else if (c in plain) out = out plain[c]
    else stop()
  }
}
function value(depth,  c) {
  if (depth > 200) stop()
  blank()
  c = at <= size ? substr(text, at, 1) : ""
  if (c == "\"") { at++; c = string(); kind = "text"; return c }
  if (c == "{" || c == "[") return members(depth, c, at++)
  if (!match(substr(text, at, 64), /^(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)/)) stop()
  at += RLENGTH
  kind = "none"
  return ""
}
function members(depth, open, start,  shut, key, item, count, list, is_list, c) {
  shut = open == "{" ? "}" : "]"
  is_list = open == "["
  blank()
  if (substr(text, at, 1) == shut) at++
  else for (;;) {
    if (open == "{") {
      blank()
      if (substr(text, at++, 1) != "\"") stop()
      key = string()
      blank()
      if (substr(text, at++, 1) != ":") stop()
    }
    item = value(depth + 1)
    if (kind != "text") is_list = 0
    if (is_list) list = list (count++ ? "\\n" : "") item
    if (depth == 0 && open == "{" && key == name && name != "") take(item)
    blank()
    c = at <= size ? substr(text, at++, 1) : ""
    if (c == shut) break
    if (c != ",") stop()
  }
  kind = is_list ? "list" : "tree"
  if (is_list) return list
  list = substr(text, start, at - start)
  gsub(/\\/, "&&", list)
  return list
}
function take(item) { answer = item; is_there = kind != "none" }
{ text = text $0 "\n" }
END {
  size = length(text)
  at = 1
  plain["\""] = "\""; plain["\\"] = "\\\\"; plain["/"] = "/"
  plain["b"] = "\\b"; plain["f"] = "\\f"; plain["n"] = "\\n"; plain["r"] = "\\r"; plain["t"] = "\\t"
  whole = value(0)
  if (name == "") take(whole)
  blank()
  if (at <= size || !is_there) exit 1
  printf "%s", answer
}'

main "$@"
