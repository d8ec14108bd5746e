# Prints what ACLs do to what is made and changed in the current directory: the same on each filesystem that has them.
umask 027
show() { echo "== $*"; getfacl --omit-header --absolute-names "$@" 2>&1; stat -c '%A %F' "$@" 2>&1; }
as_daemon() { setpriv --reuid=daemon --regid=daemon --clear-groups "$@" > /dev/null 2>&1 && echo "may $*" || echo "may not $*"; }

mkdir plain inherits
touch plain/file && show plain plain/file
setfacl -d -m u:daemon:rwx,g:nogroup:r-x,o::--- inherits && show inherits
touch inherits/file && show inherits/file
mkfifo -m 666 inherits/fifo && show inherits/fifo
ln -s file inherits/link && stat -c '%A %F' inherits/link
for name in 1 2 3 4 5 6 7 8; do
    mkdir inherits/$name && touch inherits/$name/file && show inherits/$name inherits/$name/file
done
mkdir -p inherits/1/2/3 && show inherits/1/2/3
python3 - inherits <<'END'
import os, sys
fd = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o664)
os.link(f"/proc/self/fd/{fd}", sys.argv[1] + "/unnamed", follow_symlinks=True)
END
show inherits/unnamed

echo text > plain/guarded && chmod 600 plain/guarded && chmod 755 . plain
as_daemon cat plain/guarded
setfacl -m u:daemon:r plain/guarded && show plain/guarded
as_daemon cat plain/guarded
as_daemon tee plain/guarded
chmod 600 plain/guarded && show plain/guarded
as_daemon cat plain/guarded
chmod 660 plain/guarded && show plain/guarded
as_daemon cat plain/guarded
setfacl -b plain/guarded && show plain/guarded
as_daemon cat plain/guarded
setfacl -m u::rwx,g::r--,o::--x plain/guarded && show plain/guarded
setfacl -d -m u:daemon:r plain/guarded 2>&1 | sed 's/.*: //'

chown daemon:nogroup plain/guarded && chmod 2770 plain/guarded && show plain/guarded
as_daemon setfacl -m u:nobody:r plain/guarded
show plain/guarded
mv inherits/file plain/moved && show plain/moved
cp -a inherits copied && show copied copied/1 copied/1/file
setfacl -k inherits && touch inherits/late && show inherits inherits/late
setfacl -R -b copied && show copied/1/file
getfattr -d -m - --absolute-names copied/1/file inherits
rm -r inherits copied plain
