// An authorization server for tests: oidc-provider with the client-credentials grant.
//
//   node server.mjs NODE_MODULES < settings.json
//
// listens on a free port of the loopback and prints its issuer.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const entry = `${process.argv[2]}/oidc-provider/lib/index.js`;
const { default: Provider } = await import(pathToFileURL(entry));
const { jwks, clients, resources } = JSON.parse(readFileSync(0, 'utf8'));

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const scopes = Object.values(resources).flatMap(({ scope }) => scope.split(' '));
  const provider = new Provider(issuer, {
    jwks,
    scopes: [...new Set(scopes)],
    clients: clients.map((client) => ({
      ...client,
      grant_types: ['client_credentials'],
      response_types: [],
      redirect_uris: [],
    })),
    formats: {
      customizers: {
        // As if issued that long ago; it issues no tokens that have expired.
        jwt: (_context, { resourceServer }, { payload }) => {
          const { age = 0 } = resources[resourceServer.identifier()];
          payload.iat -= age;
          payload.exp -= age;
        },
      },
    },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        // Without a resource (RFC 8707) its tokens are opaque; for one they are JWTs (RFC 9068).
        getResourceServerInfo: (_context, resource) => ({
          ...resources[resource],
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
