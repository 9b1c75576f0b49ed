# make.sh: compiles and links, several processes at once, by gcc and make.
set -eu
cd "$(mktemp -d)"
for i in 1 2 3 4; do echo "int f$i(void) { return $i; }" >"f$i.c"; done
cat >main.c <<'EOF'
#include <stdio.h>
int f1(void), f2(void), f3(void), f4(void);
int main(void) { printf("sum %d\n", f1() + f2() + f3() + f4()); }
EOF
printf 'main: main.o f1.o f2.o f3.o f4.o\n\t$(CC) -pipe -o $@ $^\n' >Makefile
make -s -j2 CC=gcc main
./main
