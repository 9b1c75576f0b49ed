# git.sh URL: configures, commits, clones by file and over http.
set -eu
git config --global user.name "A Plugin"
git config --global user.email plugin@test.example
git config --global init.defaultBranch main
work=$(mktemp -d)
git init -q "$work/a"
echo one >"$work/a/file"
git -C "$work/a" add file
git -C "$work/a" commit -q -m "Add a file"
git clone -q "$work/a" "$work/b"
echo "cloned by file: $(cat "$work/b/file")"
git clone -q "$1" "$work/c"
echo "cloned over http: $(cat "$work/c/file")"
git -C "$work/c" fetch -q
git -C "$work/c" log --format='author %an'
