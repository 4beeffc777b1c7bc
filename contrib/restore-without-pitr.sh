#!/bin/sh
# Restores a full backup and all WAL after it without pitr: with zstd, tar, b3sum, a shell, and for an encrypted
# repository age. FORMAT.md says what is read here; tests/without_pitr.rs starts PostgreSQL on the result.
#
#   restore-without-pitr.sh [-i IDENTITY] [-f FINGERPRINT] [-b BACKUP] [-t TIMELINE] [-T OLD=NEW]... FOLDER DIRECTORY
#
#     FOLDER         a copy of <cluster>/<system identifier>/ of the repository on a local disk; it must stay while recovery runs
#     DIRECTORY      the data directory to make; DIRECTORY.restore/ beside it holds the restore_command and the unwrapped keys
#     -i IDENTITY    a recipient's identity file (AGE-SECRET-KEY-1...), if the repository is encrypted
#     -f FINGERPRINT of the seal key, as the recovery kit prints it; without it nothing tells this repository from a forged one
#     -b BACKUP      which complete full backup; the newest that leads to the timeline otherwise
#     -t TIMELINE    which timeline to follow, in decimal digits; the newest otherwise, from which on nothing of older ones is replayed
#     -T OLD=NEW     where a tablespace goes: OLD is its place on the server, or its OID; NEW is an empty directory, or one to be
#                    made. An equals sign in a path is written \=. Every tablespace needs one; those that WAL makes later go
#                    where they were made
#
# Start PostgreSQL of the same major version on DIRECTORY then. It replays to the end of the WAL in FOLDER. Damage, a segment that is
# missing or unfinished although WAL goes on after it, and FOLDER out of reach stop recovery; the server's log says what it is,
# and how to open the database with what lies before. Mend it and start again otherwise.
set -eu
umask 077
# Bytes are bytes, and a-z are 26 letters.
LC_ALL=C
export LC_ALL
# With it `cd` goes elsewhere, and says where.
unset CDPATH

die() { printf 'restore-without-pitr: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^# Start/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

identity='' fingerprint='' backup='' goal='' moves=''
line_feed='
'
while getopts i:f:b:t:T: flag; do
  case $flag in
    i) identity=$OPTARG ;;
    f) fingerprint=$(printf %s "$OPTARG" | tr -d ' ' | tr A-F a-f) ;;
    b) backup=$OPTARG ;;
    t) goal=$OPTARG ;;
    T) moves=$moves$OPTARG$line_feed ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# = 2 ] || usage
for program in zstd tar b3sum; do command -v "$program" >/dev/null || die "$program is not installed"; done

# Values that get into paths and commands. Of a folder that is not encrypted anybody with access to the bucket may have written them.
only() { case $2 in '' | *[!$3]*) die "this is no $1: $2" ;; esac; }
[ -z "$backup" ] || only 'backup id' "$backup" 0-9a-f-
case $goal in '' | 1) ;; 0* | ??????????*) die "this is no timeline: $goal" ;; *) only timeline "$goal" 0-9 ;; esac
case $2 in
  /*) place=$2 ;;
  *) place=$PWD/$2 ;;
esac
# restore_command says it within two kinds of quotation marks.
case $place in
  *[\'\"\\\`\$%]* | *"$line_feed"*)
    die "$place cannot be said in restore_command: choose a directory without ' \" % \$ \` \\ and line feeds in its path" ;;
esac

folder=$(cd "$1" && pwd)
case $folder in *\'* | *"$line_feed"*) die "$folder has ' or a line feed in its path: move or link it elsewhere" ;; esac
[ -f "$folder/identity.json" ] || die "$folder is not the folder of a cluster: it has no identity.json"
[ "${goal:-1}" = 1 ] || [ -f "$folder/wal/$(printf %08X "$goal").history" ] || die "no history of timeline $goal is stored"

# The value of a member at the first level of one of pitr's JSON objects, which are indented by two.
member() { sed -n "s/^  \"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1" | head -n 1; }
# One member of an object inside it: member_of FILE OBJECT NAME.
member_of() {
  sed -n "/^  \"$2\": {/,/^  }/s/^    \"$3\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1" | head -n 1
}
digest() { b3sum --no-names "$@"; }

sealed=$(member "$folder/identity.json" sealed)
cluster=$(member "$folder/identity.json" cluster)
system=$(member "$folder/identity.json" system)
segment_size=$(member "$folder/identity.json" segment_size)
only cluster "$cluster" a-z0-9_-
only 'system identifier' "$system" 0-9
only 'segment size' "$segment_size" 0-9
case $sealed in true | false) ;; *) die 'identity.json does not say whether the repository is encrypted' ;; esac
mkdir "$2"
data=$(cd "$2" && pwd)
work=$data.restore
# What fails leaves no keys, no data directory that is cut off, and places of tablespaces as they were: each was empty.
clean() {
  rm -rf "$data" "$work/keys" "$work/seal"* "$work/opened"
  while IFS= read -r place; do rm -rf "$place"/PG_[0-9]* || :; done <"$work/places"
  # Of two that lie in each other the inner one first.
  sort -r "$work/made" | while IFS= read -r place; do rmdir "$place" 2>/dev/null || :; done
  rm -rf "$work"
}
trap 'code=$?; [ "$code" = 0 ] || rm -rf "$data"; exit "$code"' EXIT
trap 'exit 130' HUP INT TERM
mkdir "$work"
: >"$work/places"
: >"$work/made"
trap 'code=$?; [ "$code" = 0 ] || clean; exit "$code"' EXIT

# --- Keys: every epoch that the identity opens, all with one seal key ---------------------------------
if [ "$sealed" = true ]; then
  command -v age >/dev/null || die 'age is not installed, and the repository is encrypted'
  [ -n "$identity" ] || die 'the repository is encrypted: give an identity with -i'
  mkdir "$work/keys"
  seal=''
  for epoch in "$folder"/keys/e[0-9][0-9][0-9][0-9]/; do
    name=$(basename "$epoch")
    for wrap in "$epoch"wrap-*.age; do
      age -d -i "$identity" -o "$work/opened" "$wrap" 2>/dev/null || continue
      grep -qx "# pitr epoch $name" "$work/opened" || continue
      grep -qx "# cluster: $cluster" "$work/opened" || continue
      key=$(sed -n 's/^# seal key: //p' "$work/opened")
      case $key in *[!0-9a-f]*) continue ;; esac
      [ ${#key} = 64 ] || continue
      # The bytes behind the hexadecimal digits.
      for byte in $(printf %s "$key" | sed 's/../& /g'); do
        # shellcheck disable=SC2059
        printf "\\$(printf %o "0x$byte")"
      done >"$work/seal.new"
      if [ -n "$fingerprint" ] && [ "$(digest "$work/seal.new")" != "$fingerprint" ]; then continue; fi
      [ -z "$seal" ] || [ "$seal" = "$key" ] || die 'the wraps hold different seal keys: give the fingerprint with -f'
      seal=$key
      mv "$work/seal.new" "$work/seal"
      mv "$work/opened" "$work/keys/$name.key"
    done
  done
  [ -n "$seal" ] || die "$identity opens no wrap here, or none with that fingerprint"
  [ -n "$fingerprint" ] || printf 'UNVERIFIED: seal key %s; compare with the recovery kit\n' "$(digest "$work/seal")" >&2
elif [ -n "$identity$fingerprint" ]; then
  die 'the repository says it is not encrypted: somebody may have replaced it. Leave -i and -f out if it never was'
fi

# Whether the sum or mac of a JSON object is right. It is about all bytes before the last member.
sound_json() {
  lines=$(wc -l <"$folder/$1")
  # All lines but the last two, without the comma and the line feed at their end.
  covered=$(head -n $((lines - 2)) "$folder/$1")
  covered=${covered%,}
  if [ "$sealed" = true ]; then
    printf 'pitr1 json\nkey=%s/%s/%s\n%s' "$cluster" "$system" "$1" "$covered" >"$work/covered"
    found=$(digest --keyed "$work/covered" <"$work/seal")
    stated=$(member "$folder/$1" mac)
  else
    printf %s "$covered" >"$work/covered"
    found=$(digest "$work/covered")
    stated=$(member "$folder/$1" sum)
  fi
  [ -n "$stated" ] && [ "$(printf %s "$found" | cut -c1-32)" = "$stated" ]
}
check_json() {
  [ -f "$folder/$1" ] || die "$1 is missing"
  sound_json "$1" || die "$1 was changed, or is not this cluster's"
}
check_json identity.json

# --- WAL: what PostgreSQL calls for each file ------------------------------------------------------------
cat >"$work/get.sh" <<END
#!/bin/sh
# Called by PostgreSQL: get.sh FILE DESTINATION. 0: delivered. 1: proven absent, and the database opens. PostgreSQL takes every code
# up to 125 for 1, so whatever else goes wrong is 200, which stops recovery.
folder='$folder' work='$work' cluster='$cluster' system='$system' sealed='$sealed'
segment_size='$segment_size' goal='$goal' identity='$(digest "$folder/identity.json")'
END
cat >>"$work/get.sh" <<'END'
umask 077
LC_ALL=C
export LC_ALL
own=$work/wal.$$
trap 'rm -f "$own".*' EXIT

stop() { printf 'get.sh: %s: %s\n' "$object" "$*" >&2; exit 200; }
# As stop, where somebody may decide that recovery shall end there.
doubt() {
  [ -e "$work/end-at-$file" ] ||
    stop "$*. To open the database with what lies before, and give up what lies behind: touch '$work/end-at-$file'"
}
value() { sed -n "s/^$1=//p" "$own.head"; }

# Reads the header of object $1, which must be that of file $2.
header() {
  object=$1
  head -c 512 "$1" >"$own.start"
  tail -c +9 "$own.start" >"$own.head"
  [ "$(value cluster)" = "$cluster" ] && [ "$(value sys)" = "$system" ] && [ "$(value name)" = "$2" ] ||
    stop 'it is that of another file or cluster'
  if [ "$sealed" = true ]; then
    { printf 'pitr1 header\n'; sed '/^mac=/,$d' "$own.head"; } >"$own.lines"
    mac=$(b3sum --no-names --keyed "$own.lines" <"$work/seal" | cut -c1-32)
    [ "$mac" = "$(value mac)" ] || stop 'it was changed or forged'
  fi
  end=$(value end)
  case $2:$end in
    *.history:* | *:full | *:switch | *:short | *:damaged) ;;
    *) stop 'its header is damaged' ;;
  esac
}

# Checks object $1, which must be that of file $2, and opens it into $own.file.
unpack() {
  header "$1" "$2"
  tail -c +513 "$1" >"$own.body"
  [ "$(b3sum --no-names "$own.body")" = "$(value body)" ] || stop 'it is damaged'
  if [ "$sealed" = true ]; then
    epoch=$(value key)
    case $epoch in *[!e0-9]*) stop 'its header is damaged' ;; esac
    [ -f "$work/keys/$epoch.key" ] || stop "it takes the key of epoch $epoch"
    age -d -i "$work/keys/$epoch.key" "$own.body" >"$own.open" || stop 'it does not open'
  else
    mv -f "$own.body" "$own.open"
  fi
  zstd -qdc "$own.open" >"$own.file" || stop 'it is no zstd frame'
  [ "$(wc -c <"$own.file")" -eq "$(value size)" ] || stop 'it is cut off'
}

# Sets `switch`: where the timeline of history $1 left this one, as PostgreSQL writes positions; empty if it did not.
left_at() {
  asked=$object ended=$end # unpack says it of another file
  unpack "$folder/wal/$1" "$1"
  switch=$(sed -n "s|^[[:blank:]]*$((0x$timeline))[[:blank:]]\{1,\}\([0-9A-F]*/[0-9A-F]*\).*|\1|p" "$own.file")
  object=$asked end=$ended
}

# Sets `cut`: how many bytes of segment $file recovery may replay, because it goes on along another timeline from there on; empty if it may
# replay all. PostgreSQL asks for a segment of the older timeline where the newer one's is not there, and would replay it past the fork.
look_fork() {
  cut='' newest=$((0x$timeline))
  if [ -n "$goal" ]; then
    newest=$goal
  else
    # As PostgreSQL looks for the newest: to the first history that is not there.
    while [ -e "$folder/wal/$(printf %08X $((newest + 1))).history" ]; do newest=$((newest + 1)); done
  fi
  [ "$newest" -gt $((0x$timeline)) ] || return 0
  left_at "$(printf %08X "$newest").history"
  [ -n "$switch" ] || return 0
  fork=$((0x${switch%/*} << 32 | 0x${switch#*/} / segment_size))
  if [ "$number" -gt "$fork" ]; then
    cut=0
  elif [ "$number" = "$fork" ]; then
    cut=$((0x${switch#*/} % segment_size))
  fi
}

# Sets `later`: what shows that WAL goes on after $file, or empty. A later segment of the timeline, or a timeline that left it later.
# Numbers are compared by the shell itself: a program that cannot be run must not look like a no.
look_later() {
  later=''
  if [ -d "$folder/wal/$timeline" ]; then
    find "$folder/wal/$timeline" -name '*.wal' >"$own.list"
    sed -n 's|.*/\([0-9A-F]\{24\}\)\.\(partial\.\)\{0,1\}\([0-9]*\.\)\{0,1\}wal$|\1|p' "$own.list" >"$own.names"
    sort -o "$own.names" "$own.names"
    last=$(tail -n 1 "$own.names")
    if [ -n "$last" ] && [ $((0x${last#????????})) -gt "$number" ]; then later=$last; fi
  fi
  for history in "$folder"/wal/*.history; do
    child=${history##*/}
    case $child in *[!0-9A-F]*.history) continue ;; esac # no timeline's name, or none is there
    [ $((0x${child%.history})) -gt $((0x$timeline)) ] || continue
    left_at "$child"
    [ -n "$switch" ] || continue
    if [ $((0x${switch%/*} << 32 | 0x${switch#*/} / segment_size)) -gt "$number" ]; then later=$child; fi
  done
}

# Sets `object` to the last copy of segment $file, and `end` to how it ends: `absent` if there is none. Only an unfinished copy has a
# longer one beside it; any other that is there was put there.
choose() {
  copy=0 end=absent
  object=$log/$file.wal longer=$object
  while [ -e "$longer" ]; do
    copy=$((copy + 1))
    header "$longer" "$file"
    case $end in full | switch) return ;; esac
    longer=$log/$file.$((copy + 1)).wal
  done
  for other in "$log/$file".[0-9]*.wal; do
    n=${other%.wal}
    n=${n##*.}
    case $n in *[!0-9]* | 0*) continue ;; esac
    [ "$n" -le "$copy" ] || doubt "there is a copy $n, and none of $((copy + 1))"
  done
}

# Delivers file $1 to $2 and says so, or that it is absent. In a shell of its own: the first command that fails ends it.
answer() (
  set -eu
  file=$1 object=$1
  printf '%s\n' "$file" | grep -Eqx '[0-9A-F]{24}|[0-9A-F]{8}\.history' || stop 'recovery takes no such file'
  timeline=$(printf %s "$file" | cut -c1-8)
  case $file in
    *.history)
      object=$folder/wal/$file end=full number=-1 cut=''
      [ -e "$object" ] || end=absent
      ;;
    *)
      log=$folder/wal/$timeline/$(printf %s "$file" | cut -c9-16)
      number=$((0x${file#????????}))
      end=''
      look_fork
      # What lies beyond the fork may be damaged, or gone: recovery does not go there.
      if [ "$cut" = 0 ]; then end=beyond; else choose; fi
      ;;
  esac
  case $end:$file in
    beyond:*) end=absent ;;
    damaged:*) doubt 'it was stored with damage in it, and recovery would end there' ;;
    absent:00000001.history) ;; # the first timeline has none
    absent:*)
      look_later
      [ -z "$later" ] || doubt "it is not there, but $later is"
      ;;
    short:*)
      look_later
      [ -z "$later" ] || doubt "it is unfinished, and no longer copy is there, but $later is"
      ;;
  esac
  if [ "$end" = absent ]; then
    # Last: whatever was not found above may have gone meanwhile, with the disk that it is on.
    [ "$(b3sum --no-names "$folder/identity.json")" = "$identity" ] || stop "$folder is gone, or is another one"
    echo absent
  else
    unpack "$object" "$file"
    if [ -n "$cut" ]; then
      head -c "$cut" "$own.file" >"$own.cut"
      head -c $((segment_size - cut)) /dev/zero >>"$own.cut"
      mv -f "$own.cut" "$own.file"
    fi
    mv -f "$own.file" "$2"
    echo delivered
  fi
)

said=$(answer "$@")
case $?:$said in
  0:delivered) exit 0 ;;
  0:absent) exit 1 ;;
  143:*) exit 143 ;; # the server is stopped
  *) exit 200 ;;
esac
END
chmod 700 "$work/get.sh"

# --- The backup ----------------------------------------------------------------------------------------
number_of() { echo $((0x${1%/*} << 32 | 0x${1#*/})); }
# Says why recovery cannot go from the end of the backup with verdict $1 to the timeline that is to be followed, if that is so.
off_route() {
  begun=$(member "$1" timeline) stop=$(member "$1" stop_lsn)
  only timeline "$begun" 0-9
  only position "$stop" 0-9A-F/
  newest=${goal:-$begun}
  if [ -z "$goal" ]; then
    # As PostgreSQL looks for the newest: to the first history that is not there.
    while [ -e "$folder/wal/$(printf %08X $((newest + 1))).history" ]; do newest=$((newest + 1)); done
  fi
  [ "$newest" != "$begun" ] || return 0
  [ "$newest" -gt "$begun" ] || { echo "it is of timeline $begun, which timeline $newest does not come from"; return; }
  history=$(printf %08X "$newest").history
  "$work/get.sh" "$history" "$work/history" || die "$history cannot be read"
  left=$(sed -n "s|^[[:blank:]]*$begun[[:blank:]]\{1,\}\([0-9A-F]\{1,8\}/[0-9A-F]\{1,8\}\).*|\1|p" "$work/history")
  if [ -z "$left" ]; then
    echo "it is of timeline $begun, which timeline $newest does not come from"
  elif [ "$(number_of "$stop")" -gt "$(number_of "$left")" ]; then
    echo "it ended at $stop, and timeline $newest left its timeline $begun before, at $left"
  fi
}
# Says why nothing can be restored from backup $1, if that is so.
unfit() {
  place=backups/$1
  verdict=$folder/$place/backup.json
  [ -f "$verdict" ] || { echo 'it has no backup.json: it is not there, or was never finished'; return; }
  check_json "$place/backup.json"
  [ "$(member "$verdict" status)" = complete ] || { echo 'it was abandoned'; return; }
  [ "$(member "$verdict" id)/$(member "$verdict" cluster)/$(member "$verdict" system)" = "$1/$cluster/$system" ] ||
    { echo 'its backup.json is that of another one'; return; }
  kind=$(member "$verdict" kind)
  [ "$kind" = full ] || { echo "it is not a full backup but ${kind:-none}: FORMAT.md says how to put its files together"; return; }
  [ "$(member "$verdict" checksums)" != corrupt ] || { echo 'it has damaged pages, which its backup.json names'; return; }
  check_json "$place/intent.json"
  [ "$(member "$verdict" nonce)" = "$(member "$folder/$place/intent.json" nonce)" ] ||
    { echo 'its intent.json is that of another one'; return; }
  [ -e "$folder/$place/expired.json" ] || { off_route "$verdict"; return; }
  # Whoever can write to the bucket can put a tombstone there, but not one with the right mac.
  if [ "$sealed" = true ] && ! sound_json "$place/expired.json"; then
    printf '%s is not believed: it was changed or forged\n' "$place/expired.json" >&2
    off_route "$verdict"
  else
    echo 'it expired, and may be deleted in part'
  fi
}
if [ -n "$backup" ]; then
  why=$(unfit "$backup")
  [ -z "$why" ] || die "backup $backup: $why"
else
  # The newest first: what is found damaged on the way is said, not passed over.
  ids=$(ls "$folder/backups" | grep -Ex '[0-9]{8}-[0-9]{6}-[0-9a-f]{8}' | sort -r)
  for id in $ids; do
    why=$(unfit "$id")
    [ -n "$why" ] || { backup=$id; break; }
    printf 'backup %s is passed over: %s\n' "$id" "$why" >&2
  done
  [ -n "$backup" ] || die 'there is no complete full backup'
fi
place=backups/$backup
verdict=$folder/$place/backup.json

# --- Tablespaces: their links are there before the files, and PostgreSQL makes them anew from tablespace_map -------------
# Their OIDs, and the places as they are: in JSON a quotation mark and a backslash have a backslash before them.
sed -n '/^  "tablespaces": \[$/,/^  \]/s/^      "oid": \([0-9]\{1,\}\),$/\1/p' "$verdict" >"$work/oids"
sed -n '/^  "tablespaces": \[$/,/^  \]/s/^      "location": "\(.*\)"$/\1/p' "$verdict" |
  sed 's/\\\(["\\]\)/\1/g' >"$work/locations"
[ "$(wc -l <"$work/oids")" -eq "$(wc -l <"$work/locations")" ] || die 'the tablespaces in backup.json cannot be read'
major=$(member "$verdict" major)
only 'major version' "$major" 0-9
# OLD and NEW of each -T, a line each.
equals=$(printf '\001')
printf %s "$moves" | sed "s/\\\\=/$equals/g" | while IFS= read -r move; do
  case $move in
    *=*=* | =*) die "-T $move: it is not OLD=NEW" ;;
    *=/*) printf '%s\n%s\n' "${move%%=*}" "${move#*=}" | tr "$equals" = ;;
    *) die "-T $move: it is not OLD=NEW with NEW an absolute path" ;;
  esac
done >"$work/moves"
: >"$work/map"
wanting=''
exec 3<"$work/locations"
while IFS= read -r oid; do
  IFS= read -r old <&3
  case $old in
    /*) ;;
    *) printf '%s %s\n' "$oid" "$old" >>"$work/map"; continue ;; # it lies inside the data directory
  esac
  new=''
  while IFS= read -r from && IFS= read -r to; do
    if [ "$from" = "$oid" ] || [ "${from%/}" = "$old" ]; then new=$to; fi
  done <"$work/moves"
  if [ -z "$new" ]; then
    wanting="$wanting -T '$old=/new/place'"
    continue
  fi
  # Its innermost directory alone goes if something fails.
  [ -d "$new" ] || { mkdir -p "$new"; (cd "$new" && pwd -P) >>"$work/made"; }
  new=$(cd "$new" && pwd -P)
  [ -z "$(ls -A "$new")" ] || die "$new, for the tablespace at $old, is not empty"
  case $new/ in "$(cd "$data" && pwd -P)"/*) die "$new lies inside the data directory" ;; esac
  if grep -qxF -e "$new" "$work/places"; then die "two tablespaces would be at $new"; fi
  # PostgreSQL would take the outer one's directory for not empty.
  while IFS= read -r other; do
    case $new/ in "$other"/*) die "$new lies inside $other, the place of another tablespace" ;; esac
    case $other/ in "$new"/*) die "$other, the place of another tablespace, lies inside $new" ;; esac
  done <"$work/places"
  case $major:$new in 13:*\\) die "PostgreSQL 13 reads no path with a backslash at its end: $new" ;; esac
  chmod 700 "$new"
  printf '%s\n' "$new" >>"$work/places"
  mkdir -p "$data/pg_tblspc"
  ln -s "$new" "$data/pg_tblspc/$oid"
  # Since 14 a backslash protects itself there.
  [ "$major" -lt 14 ] || new=$(printf '%s\n' "$new" | sed 's/\\/&&/g')
  printf '%s %s\n' "$oid" "$new" >>"$work/map"
done <"$work/oids"
exec 3<&-
[ -z "$wanting" ] || die "backup $backup has tablespaces; say where they go:$wanting"
while IFS= read -r from && IFS= read -r to; do
  grep -qxF -e "$from" -e "${from%/}" "$work/oids" "$work/locations" ||
    die "-T $from=$to: the backup has no tablespace there"
done <"$work/moves"

suffix=''
opened() { cat "$1"; }
if [ "$sealed" = true ]; then
  suffix=.age
  epoch=$(member "$verdict" key)
  only epoch "$epoch" e0-9
  [ -f "$work/keys/$epoch.key" ] || die "the identity does not open epoch $epoch"
  opened() { age -d -i "$work/keys/$epoch.key" "$1"; }
fi
manifest=$folder/$place/manifest.jsonl.zst$suffix
[ "$(digest "$manifest")" = "$(member_of "$verdict" manifest digest)" ] || die 'the manifest is damaged'
opened "$manifest" >"$work/manifest.zst"
zstd -qdc "$work/manifest.zst" >"$work/manifest"

count=$(member_of "$verdict" packs count)
only 'number of packs' "$count" 0-9
number=0
while [ "$number" -lt "$count" ]; do
  pack=$folder/$place/pack-$(printf %05d "$number").tar.zst$suffix
  line=$(sed -n "/\"backup\":\"$backup\",\"pack\":$number,/p" "$work/manifest" | head -n 1)
  stated=$(printf %s "$line" | sed -n 's/.*"digest":"\([0-9a-f]*\)".*/\1/p')
  [ -f "$pack" ] && [ "$(digest "$pack")" = "$stated" ] || die "$pack is missing or damaged"
  number=$((number + 1))
done
printf 'backup %s: %s packs, all whole\n' "$backup" "$count"

# One archive, cut into packs. A pipe tells only of its end, and tar takes what is cut off between two files for whole: who comes to an
# end before it leaves a mark. A mark of failure could not be made on a full disk.
{
  number=0
  while [ "$number" -lt "$count" ]; do
    opened "$folder/$place/pack-$(printf %05d "$number").tar.zst$suffix" || exit 1
    number=$((number + 1))
  done
  touch "$work/read"
} | { zstd -qdc && touch "$work/decoded"; } |
  tar x -p -f - -C "$data" --keep-directory-symlink || die 'the files cannot be written'
[ -e "$work/read" ] && [ -e "$work/decoded" ] || die 'a pack does not open'
chmod 700 "$data"
if [ -s "$work/map" ]; then
  [ -f "$data/tablespace_map" ] || die 'the backup has tablespaces but no tablespace_map'
  cat "$work/map" >"$data/tablespace_map"
fi

# --- Recovery ------------------------------------------------------------------------------------------
# What the source was doing is not what its copy does. A backup of a standby has the signal that goes before recovery's own and never
# ends; a target or a command that was left over would stop early or run, and the copy would take WAL from the source's primary.
# PostgreSQL reads this file last, and of two values of one setting takes the later.
rm -f "$data/standby.signal"
touch "$data/recovery.signal"
cat >>"$data/postgresql.auto.conf" <<END

recovery_target = ''
recovery_target_name = ''
recovery_target_time = ''
recovery_target_xid = ''
recovery_target_lsn = ''
recovery_target_inclusive = on
recovery_target_timeline = '${goal:-latest}'
recovery_target_action = 'promote'
restore_command = '"$work/get.sh" %f "%p"'
recovery_min_apply_delay = 0
archive_cleanup_command = ''
recovery_end_command = ''
primary_conninfo = ''
primary_slot_name = ''
synchronous_standby_names = ''
archive_mode = off
END
# Since 15 the next segment is fetched ahead: one that must not be had would stop a recovery that ends before it.
[ "$major" -lt 15 ] || printf 'recovery_prefetch = off\n' >>"$data/postgresql.auto.conf"
printf 'start PostgreSQL on %s; delete %s when recovery is over: it holds keys\n' "$data" "$work"
