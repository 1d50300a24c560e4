// Swagger UI 5.35.0 as npm's swagger-ui-dist has it, served from here: this page shares its origin
// with the console, which keeps a key, so no script of anybody else's may run on it.

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null, // it would send the document to a server of its makers
});
