# by-hand.sh: R=FOLDER sh by-hand.sh, as the user that PostgreSQL runs as, in an empty directory with recovery.key in it.
set -eu
umask 077
export LC_ALL=C
unset CDPATH
R=$(cd "$R" && pwd)
rm -f opened.all decoded map route
# Where of the newest timeline nothing but its history is stored, PostgreSQL would replay its parent past the fork.
history=$(ls "$R"/wal/*.history 2>/dev/null | tail -n 1)
history=${history%.history}
[ -z "$history" ] || [ -d "$history" ] || [ -n "${FORKED:-}" ] || {
  echo "no WAL of timeline ${history##*/} is stored. restore-without-pitr.sh ends where it begins. By hand: FORKED=1, and before the start"
  echo "recovery_target_lsn in data/postgresql.auto.conf, the last position in its history (tail -c +513, age, zstd as in get.sh)"
  exit 1
}
# The key of each epoch: from any wrap that opens and holds the seal key with the right fingerprint.
for wrap in "$R"/keys/e*/wrap-*.age; do
  age -d -i recovery.key "$wrap" > opened 2>/dev/null || continue
  for byte in $(sed -n 's/^# seal key: //p' opened | sed 's/../0x& /g'); do printf "\\$(printf %o "$byte")"; done > seal
  [ "$(b3sum --no-names seal)" != @fingerprint@ ] || mv opened "$(sed -n 's/^# pitr epoch //p' opened).key"
done
ls e*.key
# Where the newest timeline left the older ones.
if [ -n "$history" ]; then
  epoch=$(head -c 512 "$history.history" | sed -n 's/^key=//p')
  tail -c +513 "$history.history" | age -d -i "$epoch.key" | zstd -dc > route
fi
bytes() { echo $((0x${1%/*} << 32 | 0x${1#*/})); }
# Whether backup $1 leads to the newest timeline: PostgreSQL refuses one that ended behind the place where that left the backup's own.
leads() {
  line=$(sed -n 's/^  "timeline": \([0-9]*\),$/\1/p' "$1/backup.json") stop=$(sed -n 's|^  "stop_lsn": "\([0-9A-F/]*\)",$|\1|p' "$1/backup.json")
  [ -n "$history" ] && [ "$((0x${history##*/}))" -gt "$line" ] || return 0
  left=$(sed -n "s|^[[:blank:]]*$line[[:blank:]]\{1,\}\([0-9A-F]*/[0-9A-F]*\).*|\1|p" route)
  [ -n "$left" ] && [ "$(bytes "$stop")" -le "$(bytes "$left")" ]
}
# The backup: the newest that is whole and leads there, or B=ID in the environment. Its verdict says which epoch it takes.
for b in "$R"/backups/*/; do
  [ -z "${B:-}" ] || break
  if [ ! -e "$b/expired.json" ] && grep -qs '^  "status": "complete"' "$b/backup.json" &&
    ! grep -q '^  "checksums": "corrupt"' "$b/backup.json" && leads "$b"; then newest=${b%/}; fi
done
B=${B:+$R/backups/$B} B=${B:-${newest:?no backup is whole and leads to the newest timeline}}
leads "$B" || { echo "from backup $B timeline ${history##*/} cannot be reached"; exit 1; }
epoch=$(sed -n 's/^  "key": "\(e[0-9]*\)",$/\1/p' "$B/backup.json")
echo "backup $B, epoch $epoch"
# Tablespaces, if it has any, go below S=DIRECTORY, each by its OID.
mkdir -p data/pg_tblspc
for oid in $(sed -n '/^  "tablespaces": \[$/,/^  \]/s/^      "oid": \([0-9]*\),$/\1/p' "$B/backup.json"); do
  mkdir -p "${S:?where shall tablespaces go}/$oid"
  ln -s "$S/$oid" "data/pg_tblspc/$oid"
  echo "$oid $S/$oid" >> map
done
count=$(sed -n '/^  "packs": {/,/^  }/s/^    "count": \([0-9]*\),$/\1/p' "$B/backup.json")
[ "$(ls "$B" | grep -c '^pack-.*\.age$')" = "$count" ] || { echo "not $count packs"; exit 1; }
{ for pack in "$B"/pack-*.age; do age -d -i "$epoch.key" "$pack" || exit 1; done; touch opened.all; } |
  { zstd -dc && touch decoded; } | tar x -p --keep-directory-symlink -C data
[ -e opened.all ] && [ -e decoded ] || { echo 'a pack does not open'; exit 1; }
chmod 700 data
[ ! -e map ] || cp map data/tablespace_map
cat > get.sh <<'END'
#!/bin/sh
# get.sh R FILE DEST, called by PostgreSQL: 1 is the end of WAL, and so is every code up to 125, so all else that fails is 200.
stop() { echo "get.sh: $file: $1" >&2; exit 200; }
export LC_ALL=C
keys=$(dirname "$0") file=$2 timeline=$(echo "$2" | cut -c1-8) end=''
[ "$file" != 00000001.history ] || exit 1      # the first timeline has none
case $file in
  *.history) object=$1/wal/$file ;;
  *) stem=$1/wal/$timeline/$(echo "$file" | cut -c9-16)/$file
     object=$stem.wal longer=$object copy=1
     [ -e "$object" ] || [ ! -e "$stem.2.wal" ] || stop 'its first copy is missing'
     while [ -e "$longer" ]; do       # a copy that is short or damaged may have a longer one beside it
       object=$longer end=$(head -c 512 "$longer" | sed -n 's/^end=//p')
       case $end in full|switch) break ;; esac
       copy=$((copy + 1)) longer=$stem.$copy.wal
     done ;;
esac
[ "$end" != damaged ] || stop 'recovery would end in it'
if [ "$end" = short ] || [ ! -e "$object" ]; then
  last=$(find "$1/wal/$timeline" -name '*.wal' 2>/dev/null | sed 's|.*/||' | cut -c1-24 | sort | tail -n 1)
  [ "$(printf '%s\n' "$file" "$last" | sort | tail -n 1)" = "$file" ] || stop "WAL goes on after it: $last"
fi
[ -s "$1/identity.json" ] || stop "$1 is gone"
[ -e "$object" ] || exit 1
epoch=$(head -c 512 "$object" | sed -n 's/^key=//p')
tail -c +513 "$object" | age -d -i "$keys/$epoch.key" > "$keys/wal.$$" || stop 'it does not open'
zstd -qdc "$keys/wal.$$" > "$3" || stop 'it cannot be read'
rm -f "$keys/wal.$$"
END
chmod 700 get.sh
# What the source was told to do is not what its copy is to do.
rm -f data/standby.signal
touch data/recovery.signal
{
  echo
  for name in recovery_target recovery_target_name recovery_target_time recovery_target_xid recovery_target_lsn primary_conninfo \
    primary_slot_name recovery_end_command archive_cleanup_command synchronous_standby_names; do echo "$name = ''"; done
  echo "recovery_target_timeline = 'latest'"
  echo "recovery_target_action = 'promote'"
  echo 'recovery_target_inclusive = on'
  echo 'recovery_min_apply_delay = 0'
  echo 'archive_mode = off'
  grep -Eq '^  "major": 1[34],' "$B/backup.json" || echo 'recovery_prefetch = off'
  echo "restore_command = '\"$PWD/get.sh\" \"$R\" %f \"%p\"'"
} >> data/postgresql.auto.conf
