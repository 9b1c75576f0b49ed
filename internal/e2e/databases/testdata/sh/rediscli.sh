# redis-cli, in its default protocol and with RESP3.
cli() { redis-cli -h "$REDIS_HOST" -p "$REDIS_PORT" --user "$REDIS_USER" --pass "$REDIS_PASSWORD" --no-auth-warning "$@" 2>&1; }
for version in -2 -3; do
    cli $version DEL app:cli app:cli:n app:cli:hash
    cli $version SET app:cli value
    cli $version GET app:cli
    cli $version GET app:cli:none
    cli $version HSET app:cli:hash a 1
    cli $version HGETALL app:cli:hash
    cli $version -r 5 INCR app:cli:n
    cli $version GET other:1 | sed '/^$/d; s/^/refused: /'
    cli $version GET app:cli
    printf 'MULTI\nINCR app:cli:n\nGET app:cli\nEXEC\n' | cli $version
    printf 'MULTI\nGET app:cli\nGET other:1\nEXEC\n' | cli $version | sed 's/^[A-Z]*[( ].*other.*$/refused: &/; s/^NOPERM/refused: NOPERM/; s/^EXECABORT.*/EXECABORT/'
    cli $version --scan --pattern 'app:cli:*' | sort
done
for n in $(seq 1000 1999); do printf '*3\r\n$3\r\nSET\r\n$17\r\napp:cli:mass:%s\r\n$4\r\n%s\r\n' $n $n; done | cli --pipe | grep -v -E '^(All data|Last reply)'
cli GET app:cli:mass:1000
cli --raw DEL $(seq -f 'app:cli:mass:%.0f' 1000 1999)
