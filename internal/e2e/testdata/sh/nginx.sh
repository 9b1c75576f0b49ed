# nginx.sh PORT: serves by nginx, with its logs on the standard streams.
set -eu
dir=$(mktemp -d)
mkdir "$dir/www"
echo "from nginx" >"$dir/www/index.html"
cat >"$dir/nginx.conf" <<EOF
daemon off;
pid $dir/pid;
error_log /dev/stderr notice;
events {}
http {
  access_log /dev/stdout;
  client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3; uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5;
  server {
    listen 127.0.0.1:$1;
    listen unix:$dir/socket;
    root $dir/www;
    location /behind { proxy_pass http://unix:$dir/socket:/index.html; }
  }
}
EOF
exec nginx -c "$dir/nginx.conf" -p "$dir" -e /dev/stderr
