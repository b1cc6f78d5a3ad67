#!/usr/bin/env bash
# Writes a caption beside every picture of a folder and all folders in it, with vision-client.sh, which lies beside this.
#
#   vision-caption-folder-images.sh PROMPT EXTENSION FOLDER
#   vision-caption-folder-images.sh DETAILED_CAPTION txt ~/training/my-style
#
# A picture that has its caption is left alone, whoever wrote it. One that failed has none, so the next run tries it again.
# VISION_HOST and the other variables are vision-client.sh's.
#
# Exit codes: 0 done; 1 some pictures have no caption, each was named with its reason; 2 wrong use.
set -u -o pipefail
export LC_ALL=C # bytes are bytes

# What counts as a picture, in any case.
ENDINGS='jpg jpeg jpe jfif png apng webp gif bmp tif tiff avif heic heif'
CAPITALS=$(printf '%s' "$ENDINGS" | tr '[:lower:]' '[:upper:]')
EXIT_FAILED=1
EXIT_USAGE=2
EXIT_SERVER=69 # vision-client.sh's, when asking again makes no sense

saved=0 present=0 empty=0 failed=0
temporary=

main() {
  [ $# = 3 ] || usage
  prompt=$1 extension=${2#.} folder=$3
  unset CDPATH
  client=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/vision-client.sh
  [ -f "$client" ] || wrong "$client is not there"
  check_extension
  [ -d "$folder" ] || wrong "$folder is no folder"
  case $folder in -*) folder=./$folder ;; esac
  cd "$folder" || exit $EXIT_USAGE
  images=$(mktemp "${TMPDIR:-/tmp}/vision-images.XXXXXX") || exit $EXIT_USAGE
  trap 'rm -f "$images" ${temporary:+"$temporary"}' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  find_images >"$images" || failed=1 # find has named the folder that it may not read
  caption_all
  summarize
  [ "$failed" = 0 ] || exit $EXIT_FAILED
}

usage() {
  echo "Usage: ${0##*/} PROMPT EXTENSION FOLDER" >&2
  echo "Example: ${0##*/} DETAILED_CAPTION txt /path/to/folder" >&2
  exit $EXIT_USAGE
}

wrong() {
  echo "${0##*/}: $1" >&2
  exit $EXIT_USAGE
}

check_extension() {
  case $extension in
    '' | *[!A-Za-z0-9_.-]*) wrong "$extension is not a file name's ending; give letters and digits, as in txt" ;;
  esac
  case " $ENDINGS " in
    *" $(printf '%s' "${extension##*.}" | tr '[:upper:]' '[:lower:]') "*) wrong "$extension is a picture's ending, and a caption must never replace a picture" ;;
  esac
}

# The pictures in order, each ended by a zero byte. Hidden ones and thumbnails of a NAS are left out, links not followed.
find_images() {
  local ending wanted=()
  for ending in $ENDINGS; do
    wanted+=(-o -iname "*.$ending")
  done
  find . \( -name '.?*' -o -name '~*' -o -iname '@eadir' -o -iname '#recycle' \) -prune \
    -o -type f \( "${wanted[@]:1}" \) -print0 | sort -z
}

caption_all() {
  local image caption total number=0
  total=$(tr -dc '\0' <"$images" | wc -c)
  while IFS= read -r -d '' image <&3; do
    number=$((number + 1))
    caption=${image%.*}.$extension
    find_owner "$image"
    if [ -n "$owner" ]; then
      fail "$image" "shares its caption with $owner; rename one of the two"
    elif [ -e "$caption" ] || [ -L "$caption" ]; then
      present=$((present + 1))
      [ -s "$caption" ] || empty=$((empty + 1))
    else
      tell "Processing image: $image ($number of $((total)))"
      caption_one "$image" "$caption"
    fi
  done 3<"$images"
}

# Sets `owner` to the picture that the caption belongs to, where two differ by their endings alone: the first by name.
find_owner() {
  local ending other
  owner=
  for ending in $ENDINGS $CAPITALS; do
    other=${1%.*}.$ending
    if [[ $other < $1 && -f $other && ! $other -ef $1 ]]; then
      owner=$other
      return
    fi
  done
}

# caption_one IMAGE CAPTION: only a success that says something is written.
caption_one() {
  local text code began=$SECONDS
  text=$("$BASH" "$client" "$prompt" "$1" </dev/null | join_lines)
  code=$?
  case $code in
    0) ;;
    "$EXIT_SERVER" | "$EXIT_USAGE")
      failed=$((failed + 1))
      tell 'Stopped, as the other pictures would fare no better; the same command goes on here' >&2
      summarize
      [ "$code" = "$EXIT_USAGE" ] && exit $EXIT_USAGE
      exit $EXIT_FAILED
      ;;
    *)
      failed=$((failed + 1)) # the client has said why
      return
      ;;
  esac
  if [ -z "$text" ]; then
    fail "$1" 'the answer is empty'
  elif write_caption "$text" "$2"; then
    saved=$((saved + 1))
    tell "Caption saved to: $2 ($((SECONDS - began)) s)"
  elif [ -e "$2" ]; then
    present=$((present + 1)) # somebody was faster
  else
    fail "$1" "$2 cannot be written"
  fi
}

# One line, as trainers read no other: lines are joined by a comma, behind a full stop or the like by a space.
join_lines() {
  awk '
    { gsub(/[ \t\r]+/, " "); sub(/^ /, ""); sub(/ $/, "") }
    $0 != "" { out = out (out == "" ? "" : out ~ /[.,;:!?]$/ ? " " : ", ") $0 }
    END { print out }'
}

# write_caption TEXT FILE: whole or not at all, and never over a file that has appeared meanwhile. The hidden name is one
# that Florence Daemon removes, should this be killed before it does so itself.
write_caption() {
  temporary=$(printf '%s/.florence-%04x%04x%04x-%d' "${2%/*}" "$RANDOM" "$RANDOM" "$RANDOM" "$$")
  if (set -C && printf '%s\n' "$1" >"$temporary") && move_new "$temporary" "$2"; then
    rm -f "$temporary"
    temporary=
    return 0
  fi
  rm -f "$temporary"
  temporary=
  return 1
}

# move_new FROM TO: a hard link cannot replace anything; where the disk has none, mv -n is the next best.
move_new() {
  ln "$1" "$2" 2>/dev/null && return
  [ ! -e "$2" ] && [ ! -L "$2" ] && mv -n "$1" "$2" && [ ! -e "$1" ]
}

fail() {
  failed=$((failed + 1))
  tell "Error processing image: $1: $2" >&2
}

# A line for a person; a name must not steer the terminal.
tell() {
  printf '%s\n' "${1//[[:cntrl:]]/?}"
}

summarize() {
  tell "$saved saved, $present were there already, $failed failed" >&2
  [ "$empty" = 0 ] || tell "$empty of those that were there are empty files, which stop some trainers; delete them, and they are made anew" >&2
}

main "$@"
