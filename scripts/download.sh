# shellcheck shell=bash
# What the download scripts share; they source this file.
#
#   read_choice "a b" "$@"      the one argument, in CHOICE; prints `usage` on --help
#   fetch URL FOLDER [DATASET]  a zip archive from URL, unpacked in FOLDER
#
# An archive grows as FOLDER.zip.part, so a broken download goes on where it stopped; it is FOLDER.zip once it is whole
# and checked; it is unpacked beside FOLDER and moved there in one step, so FOLDER is never half full.
#
# Exit codes: 0 done or already there; 1 the host sent something else than the archive; 2 could not begin or go on
# (wrong argument, missing tool, no network, no room).

set -euo pipefail

NAME=$(basename "$0")
STAGING=
CHOICE=
SIZE=

fail() {
  local code=$1
  shift
  echo "$NAME: $*" >&2
  exit "$code"
}

tidy() {
  if [[ -n $STAGING ]]; then rm -rf "$STAGING"; fi
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

read_choice() {
  local allowed=$1 word
  shift
  case ${1-} in
    -h | --help)
      usage
      exit 0
      ;;
  esac
  if (($# != 1)); then fail 2 "give one of: $allowed (--help says more)"; fi
  for word in $allowed; do
    if [[ $1 == "$word" ]]; then CHOICE=$word; fi
  done
  if [[ -z $CHOICE ]]; then fail 2 "unknown argument '$1': give one of: $allowed (--help says more)"; fi
}

require() {
  local tool missing=()
  for tool in "$@"; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  if ((${#missing[@]} > 0)); then
    fail 2 "needs ${missing[*]}, not installed here: install it (for example: apt-get install ${missing[*]}) and run this again"
  fi
}

bytes() {
  if [[ -f $1 ]]; then wc -c <"$1" | tr -d ' '; else echo 0; fi
}

human() {
  awk -v n="$1" 'BEGIN { if (n < 1e6) printf "%.1f kB", n / 1e3; else if (n < 1e9) printf "%.1f MB", n / 1e6; else printf "%.2f GB", n / 1e9 }'
}

host_of() {
  local host=${1#*://}
  echo "${host%%/*}"
}

# probe URL: asks for the headers only. 0 and the bytes in SIZE (empty where the host does not tell) if there is a file
# to get, 1 if there is none; anything else ends the script.
probe() {
  local url=$1 answer status=0 reason code type
  answer=$(curl --silent --show-error --location --head --connect-timeout 20 --max-time 120 \
    --write-out '\nfinal-status %{http_code}\nfinal-type %{content_type}\n' "$url" 2>&1) || status=$?
  reason=$(sed -n 's/^curl: ([0-9]*) //p' <<<"$answer" | tail -n 1)
  case $status in
    0) ;;
    5 | 6 | 7 | 28 | 35 | 52 | 55 | 56 | 97)
      fail 2 "no network: $(host_of "$url") cannot be reached (${reason:-curl error $status}); connect and run this again"
      ;;
    *) fail 2 "cannot ask $(host_of "$url") for $url: ${reason:-curl error $status}" ;;
  esac
  code=$(sed -n 's/^final-status //p' <<<"$answer")
  type=$(sed -n 's/^final-type //p' <<<"$answer")
  SIZE=$(tr -d '\r' <<<"$answer" | awk '/^HTTP\// { n = "" } tolower($1) == "content-length:" { n = $2 } END { print n }')
  case $code in
    200) ;;
    405 | 501) SIZE='' type='' ;; # a host that answers no HEAD
    404) return 1 ;;
    401 | 403) fail 1 "$(host_of "$url") refuses $url (HTTP $code): private, gated or moved" ;;
    *) fail 1 "$(host_of "$url") answers HTTP $code for $url: try again later" ;;
  esac
  case $type in
    text/html*) fail 1 "$url answers with a web page, not an archive: nothing was kept" ;;
  esac
}

need_room() {
  local free
  free=$(df -Pk "$1" | awk 'NR == 2 { print $4 * 1024 }')
  if awk -v free="$free" -v need="$2" 'BEGIN { exit !(free < need) }'; then
    fail 2 "needs $(human "$2") in $1 (the archive and its content), $(human "$free") is free"
  fi
}

# download URL PART: goes on from what PART holds, as long as each attempt brings something.
download() {
  local url=$1 part=$2 have before status restarted='' quiet=--silent
  if [[ -t 2 ]]; then quiet=--progress-bar; fi
  have=$(bytes "$part")
  # Without a size nothing tells a half file from a whole one; a file longer than its size is not this file.
  if [[ -z $SIZE ]] || ((have > SIZE)); then
    rm -f "$part"
    have=0
  fi
  while [[ -z $SIZE ]] || ((have < SIZE)); do
    status=0
    curl --fail --location --connect-timeout 20 --speed-limit 1 --speed-time 60 "$quiet" \
      --continue-at - --output "$part" "$url" || status=$?
    before=$have
    have=$(bytes "$part")
    case $status in
      0)
        if [[ -z $SIZE ]] || ((have == SIZE)); then return; fi
        rm -f "$part"
        fail 1 "$url came with $have bytes where $SIZE were announced: removed, run this again"
        ;;
      22) fail 1 "$(host_of "$url") broke off with an HTTP error: what came is kept, run this again later" ;;
      23) fail 2 "cannot write $part: is the disk full? What came is kept, run this again" ;;
      33)
        if [[ -n $restarted ]]; then fail 2 "$(host_of "$url") cannot go on with a broken download: run this again"; fi
        restarted=yes
        rm -f "$part"
        have=0
        continue
        ;;
    esac
    if ((have <= before)); then
      fail 2 "the connection to $(host_of "$url") broke after $have of ${SIZE:-unknown} bytes: what came is kept, run this again to go on"
    fi
  done
}

# check_archive FILE URL: whole, a zip, and nothing in it that lands outside the folder it is unpacked in.
check_archive() {
  local file=$1 url=$2 bad
  if [[ $(head -c 2 "$file" | LC_ALL=C tr -d '\0') != PK ]]; then
    rm -f "$file"
    fail 1 "$url sent something that is no zip archive (a web page?): removed"
  fi
  if ! unzip -tqq "$file" >/dev/null 2>&1; then
    rm -f "$file"
    fail 1 "the archive from $url is damaged: removed, run this again"
  fi
  bad=$(unzip -Z1 "$file" | grep -E '^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)' | head -n 1) || true
  if [[ -z $bad ]]; then
    bad=$(unzip -Z "$file" | grep '^l' | head -n 1 | awk '{ print $NF " (a link)" }') || true
  fi
  if [[ -n $bad ]]; then
    rm -f "$file"
    fail 1 "the archive from $url could write outside its folder: $bad; refused and removed"
  fi
}

# unpack FILE FOLDER: an archive whose only entry is a folder of the same name is taken as that folder.
unpack() {
  local file=$1 folder=$2 content
  STAGING=$folder.unpacking
  rm -rf "$STAGING"
  mkdir "$STAGING"
  if ! unzip -qq -o "$file" -d "$STAGING"; then
    fail 2 "cannot unpack $file: is the disk full? The archive is kept, run this again"
  fi
  rm -rf "$STAGING/__MACOSX"
  content=$STAGING
  if [[ $(ls -A "$STAGING") == "$(basename "$folder")" && -d $STAGING/$(basename "$folder") ]]; then
    content=$STAGING/$(basename "$folder")
  fi
  settle "$content" "$folder"
  rm -f "$file"
}

settle() {
  if [[ -d $2 ]]; then rmdir "$2"; fi # empty: `fetch` has looked
  mv "$1" "$2"
}

# fetch_repository DATASET FOLDER: all files of a dataset repository, by the hub's own program, which goes on by itself.
fetch_repository() {
  local dataset=$1 folder=$2 hf
  hf=$(command -v hf || command -v .venv/bin/hf) ||
    fail 2 "the dataset $dataset has no archive and is kept as single files: pip install huggingface_hub (it brings the program hf) and run this again"
  echo "no archive there: getting the files of the dataset $dataset"
  "$hf" download "$dataset" --repo-type dataset --local-dir "$folder.part" ||
    fail 2 "$(basename "$hf") did not finish: what came is kept, run this again to go on"
  rm -rf "$folder.part/.cache"
  settle "$folder.part" "$folder"
}

fetch() {
  local url=$1 folder=$2 dataset=${3-} archive=$2.zip
  if [[ -d $folder && -n $(ls -A "$folder") ]]; then
    echo "$folder is already there (remove it to download it again)"
    return
  fi
  if [[ -e $folder && ! -d $folder ]]; then fail 2 "$folder is in the way: it is not a folder"; fi
  require curl unzip
  if [[ ! -f $archive ]]; then
    if probe "$url"; then
      mkdir -p "$(dirname "$folder")" 2>/dev/null || fail 2 "cannot make the folder $(dirname "$folder")"
      if [[ -n $SIZE ]]; then need_room "$(dirname "$folder")" $((2 * SIZE - $(bytes "$archive.part"))); fi
      echo "downloading $url${SIZE:+ ($(human "$SIZE"))}"
      download "$url" "$archive.part"
      check_archive "$archive.part" "$url"
      mv "$archive.part" "$archive"
    elif [[ -n $dataset ]]; then
      fetch_repository "$dataset" "$folder"
      echo "done: $folder"
      return
    else
      fail 1 "there is no file $url (HTTP 404): --help says how to name another place"
    fi
  fi
  echo "unpacking in $folder"
  unpack "$archive" "$folder"
  echo "done: $folder"
}
