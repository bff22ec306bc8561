"""How nginx and Apache httpd are set up as `kit.origins`: templates, with $names for what is known at their start.

Each response has `X-Area`. Each request is a line of `requests.log`, whose parts a tab separates: the host, the request
line, `Authorization`, the version of TLS, whether its session was resumed, the how manyth of its connection it is (in
Apache's, minus how many there were before it), whom the client's certificate is
for, and `User-Agent`.
"""

from __future__ import annotations

NGINX = """
daemon off; master_process off; pid $work/nginx.pid; error_log $work/errors.log notice;
events { worker_connections 512; }
http {
  log_format origin '$$server_name\\t$$request\\t$$http_authorization\\t$$ssl_protocol\\t$$ssl_session_reused\\t'
    '$$connection_requests\\t$$ssl_client_s_dn\\t$$http_user_agent';
  access_log $work/requests.log origin;
  client_body_temp_path $work/t1; proxy_temp_path $work/t2; fastcgi_temp_path $work/t3; uwsgi_temp_path $work/t4;
  scgi_temp_path $work/t5;
  default_type text/plain;
  gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;
  ssl_certificate $certificate; ssl_certificate_key $key; ssl_client_certificate $clients;
  ssl_session_cache shared:S:1m; ssl_protocols TLSv1.2 TLSv1.3;
  ssl_stapling on; ssl_stapling_file $staple;
  large_client_header_buffers 4 32k; client_max_body_size 64m;
  proxy_http_version 1.1; proxy_buffer_size 32k; proxy_buffers 8 32k; proxy_busy_buffers_size 64k;
  $servers
}
"""
NGINX_SERVER = """
server {
  listen $address:443 ssl http2 default_server; ssl_protocols $protocols; ssl_reject_handshake on;
}
server {
  listen $address:443 ssl http2; server_name $name; ssl_verify_client $verify; keepalive_timeout $idle;
  location /v1/app/ { add_header X-Area v1 always; proxy_pass http://127.0.0.1:$port; }
  location /v1/files/ { add_header X-Area v1 always; root $site; }
  location /v1/small/ {
    add_header X-Area v1 always; client_max_body_size 1k; proxy_pass http://127.0.0.1:$port/v1/app/;
  }
  location /v1/close/ {
    add_header X-Area v1 always; keepalive_timeout 0; proxy_pass http://127.0.0.1:$port/v1/app/;
  }
  location /v1/ { add_header X-Area v1 always; return 200 "here\\n"; }
  location /scoped/ { add_header X-Area scoped always; return 200 "here\\n"; }
  location /admin { add_header X-Area admin always; return 200 "admin\\n"; }
  location / { add_header X-Area other always; return 404; }
}
"""
# Slashes are not merged, letters have no case, and what is behind gets the decoded path to decode it again.
NGINX_LOOSE = """
server {
  listen $address:443 ssl; server_name $name; merge_slashes off;
  location ~* ^/+admin { add_header X-Area admin always; proxy_pass http://127.0.0.1:$port; }
  location ~* ^/+scoped/ { add_header X-Area scoped always; proxy_pass http://127.0.0.1:$port; }
  location ~* ^/+v1/ { add_header X-Area v1 always; rewrite ^(.*)$$ $$1 break; proxy_pass http://127.0.0.1:$port; }
  location / { add_header X-Area other always; proxy_pass http://127.0.0.1:$port/; }
}
"""
APACHE_MODULES = (
    "mpm_event", "authz_core", "ssl", "socache_shmcb", "proxy", "proxy_http", "headers", "rewrite",
    "alias", "deflate", "filter", "env", "setenvif", "mime", "http2", "dir",
)  # fmt: skip
APACHE = """
ServerRoot $work
ServerName localhost
PidFile $work/apache.pid
DefaultRuntimeDir $work
Mutex file:$work
ErrorLog $work/errors.log
$modules
TypesConfig /dev/null
ThreadsPerChild 16
MaxRequestWorkers 16
LogFormat "%v\\t%r\\t%{Authorization}i\\t%{SSL_PROTOCOL}x\\t%{SSL_SESSION_RESUMED}x\\t\\
-%k\\t%{SSL_CLIENT_S_DN_O}x\\t%{User-Agent}i" kit
CustomLog $work/requests.log kit
SSLSessionCache shmcb:$work/sessions(512000)
SSLCertificateFile $certificate
SSLCertificateKeyFile $key
SSLCACertificateFile $clients
LimitRequestFieldSize 32768
LimitRequestLine 16384
ProxyIOBufferSize 65536
<Directory />
  AllowOverride None
  Require all granted
</Directory>
$servers
"""
APACHE_SERVER = """
Listen $address:443 https
<VirtualHost $address:443>
  ServerName nobody.test
  SSLEngine on
  SSLProtocol -all $protocols
  SSLStrictSNIVHostCheck on
</VirtualHost>
<VirtualHost $address:443>
  ServerName $name
  SSLEngine on
  SSLProtocol -all $protocols
  SSLVerifyClient $verify
  Protocols h2 http/1.1
  KeepAliveTimeout $idle
  AllowEncodedSlashes NoDecode
  DocumentRoot $site
  SetOutputFilter DEFLATE
  Header always set X-Area other
  ProxyPass /v1/app/ http://127.0.0.1:$port/v1/app/ responsefieldsize=32768
  ProxyPass /v1/close/ http://127.0.0.1:$port/v1/app/
  AliasMatch "^/v1/(?!files/|app/|small/|close/)" $site/v1/files/small.txt
  AliasMatch "^/(scoped/|admin)" $site/v1/files/small.txt
  RewriteEngine on
  RewriteRule ^/v1/small/ - [R=413,L]
  <Location /v1>
    Header always set X-Area v1
  </Location>
  <Location /scoped>
    Header always set X-Area scoped
  </Location>
  <Location /admin>
    Header always set X-Area admin
  </Location>
  <Location /v1/close>
    SetEnv nokeepalive 1
  </Location>
  <Location /v1/identify>
    SSLVerifyClient require
  </Location>
</VirtualHost>
"""
# Slashes stay as they come, encoded ones are decoded, and what is behind gets the decoded path to decode it again.
APACHE_LOOSE = """
Listen $address:443 https
<VirtualHost $address:443>
  ServerName $name
  SSLEngine on
  AllowEncodedSlashes On
  MergeSlashes Off
  DocumentRoot $site
  Header always set X-Area other
  SetEnvIf Request_URI "(?i)^/+v1/" AREA_V1
  SetEnvIf Request_URI "(?i)^/+scoped/" AREA_SCOPED
  RewriteEngine on
  RewriteRule "(?i)^/+admin" - [E=AREA_ADMIN:1]
  ProxyPass / http://127.0.0.1:$port/
  Header always set X-Area v1 env=AREA_V1
  Header always set X-Area scoped env=AREA_SCOPED
  Header always set X-Area admin env=AREA_ADMIN
</VirtualHost>
"""
