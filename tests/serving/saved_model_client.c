/* Runs a SavedModel that takes strings or int32 on TensorFlow's C API alone, without Python.

   saved_model_client SAVED_MODEL LIBRARY... -- INPUT... -- OUTPUT... < requests

   LIBRARY is a shared library of further operations, INPUT and OUTPUT are tensors of the graph,
   such as serving_default_text:0. A request on the standard input is one tensor for each INPUT: its
   type as TF_DataType has it, its rank, its sizes, and of each string the length and the bytes, or
   the int32 one after another; other numbers are int64. For each OUTPUT of each request one line is printed: type, rank, sizes, values; strings are "=" and
   hexadecimal digits. Of a request that TensorFlow refuses the line is "error", the code and the
   message. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { MOST_TENSORS = 32, MOST_DIMENSIONS = 8 };

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void check(const char *what, TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* Finds "operation:index". */
static TF_Output find(TF_Graph *graph, const char *tensor) {
  char operation[1024];
  const char *colon = strrchr(tensor, ':');
  size_t length = colon ? (size_t)(colon - tensor) : sizeof operation;
  if (length >= sizeof operation) fail(tensor, "expected operation:index");
  memcpy(operation, tensor, length);
  operation[length] = 0;
  TF_Output output = {TF_GraphOperationByName(graph, operation), atoi(colon + 1)};
  if (!output.oper) fail(tensor, "not in the graph");
  return output;
}

static int64_t read_number(void) {
  int64_t number;
  if (fread(&number, sizeof number, 1, stdin) != 1) fail("request", "ends early");
  return number;
}

static TF_Tensor *read_tensor(int64_t type) {
  int64_t sizes[MOST_DIMENSIONS], count = 1, rank = read_number();
  if (type != TF_STRING && type != TF_INT32) fail("request", "expected strings or int32");
  if (rank < 0 || rank > MOST_DIMENSIONS) fail("request", "too many dimensions");
  for (int i = 0; i < rank; i++) count *= sizes[i] = read_number();
  size_t size = (size_t)count * (type == TF_STRING ? sizeof(TF_TString) : sizeof(int32_t));
  TF_Tensor *tensor = TF_AllocateTensor((TF_DataType)type, sizes, (int)rank, size);
  if (type == TF_INT32) {
    if (fread(TF_TensorData(tensor), 1, size, stdin) != size) fail("request", "ends early");
    return tensor;
  }
  TF_TString *strings = TF_TensorData(tensor);
  for (int64_t i = 0; i < count; i++) {
    size_t length = (size_t)read_number();
    char *bytes = malloc(length + 1);
    if (!bytes || fread(bytes, 1, length, stdin) != length) fail("request", "ends early");
    TF_StringInit(&strings[i]);
    TF_StringCopy(&strings[i], bytes, length);
    free(bytes);
  }
  return tensor;
}

static void free_tensor(TF_Tensor *tensor) {
  TF_TString *strings = TF_TensorData(tensor);
  int64_t count = TF_TensorType(tensor) == TF_STRING ? TF_TensorElementCount(tensor) : 0;
  for (int64_t i = 0; i < count; i++) TF_StringDealloc(&strings[i]);
  TF_DeleteTensor(tensor);
}

static void print(const TF_Tensor *tensor) {
  const void *data = TF_TensorData(tensor);
  TF_DataType type = TF_TensorType(tensor);
  const char *name = type == TF_STRING  ? "string"
                     : type == TF_FLOAT ? "float32"
                     : type == TF_INT32 ? "int32"
                     : type == TF_BOOL  ? "bool"
                                        : NULL;
  if (!name) fail("output", "of a type that is not served");
  printf("%s %d", name, TF_NumDims(tensor));
  for (int i = 0; i < TF_NumDims(tensor); i++) printf(" %lld", (long long)TF_Dim(tensor, i));
  for (int64_t i = 0; i < TF_TensorElementCount(tensor); i++) {
    if (type == TF_FLOAT) {
      printf(" %.9g", ((const float *)data)[i]); /* enough digits to read the same float again */
    } else if (type == TF_INT32) {
      printf(" %d", ((const int32_t *)data)[i]);
    } else if (type == TF_BOOL) {
      printf(" %d", ((const unsigned char *)data)[i] != 0);
    } else {
      const TF_TString *string = &((const TF_TString *)data)[i];
      const char *bytes = TF_StringGetDataPointer(string);
      printf(" =");
      for (size_t j = 0; j < TF_StringGetSize(string); j++) printf("%02x", bytes[j] & 0xff);
    }
  }
  printf("\n");
}

static void print_error(const TF_Status *status) {
  printf("error %d ", (int)TF_GetCode(status));
  for (const char *c = TF_Message(status); *c; c++) putchar(*c == '\n' ? ' ' : *c);
  printf("\n");
}

/* Finds the tensors named before "--", and returns what follows it. */
static char **find_all(TF_Graph *graph, char **names, TF_Output *found, int *count) {
  for (*count = 0; *names && strcmp(*names, "--"); names++) {
    if (*count == MOST_TENSORS) fail(*names, "too many tensors");
    found[(*count)++] = find(graph, *names);
  }
  return *names ? names + 1 : names;
}

int main(int argc, char **argv) {
  if (argc < 2) fail("arguments", "SAVED_MODEL LIBRARY... -- INPUT... -- OUTPUT...");
  TF_Status *status = TF_NewStatus();
  char **rest = argv + 2;
  for (; *rest && strcmp(*rest, "--"); rest++) {
    TF_LoadLibrary(*rest, status); /* registers its operations; it is never unloaded */
    check(*rest, status);
  }
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(argv[1], status);
  TF_Output inputs[MOST_TENSORS], outputs[MOST_TENSORS];
  int input_count, output_count;
  rest = find_all(graph, *rest ? rest + 1 : rest, inputs, &input_count);
  find_all(graph, rest, outputs, &output_count);

  int64_t type;
  while (fread(&type, sizeof type, 1, stdin) == 1) {
    TF_Tensor *given[MOST_TENSORS], *answer[MOST_TENSORS] = {NULL};
    for (int i = 0; i < input_count; i++) given[i] = read_tensor(i ? read_number() : type);
    TF_SessionRun(session, NULL, inputs, given, input_count, outputs, answer, output_count, NULL, 0,
                  NULL, status);
    if (TF_GetCode(status) != TF_OK) {
      print_error(status);
    } else {
      for (int i = 0; i < output_count; i++) print(answer[i]);
    }
    /* Outputs first: they may be the inputs' own strings. */
    for (int i = 0; i < output_count; i++) TF_DeleteTensor(answer[i]);
    for (int i = 0; i < input_count; i++) free_tensor(given[i]);
  }
  TF_CloseSession(session, status);
  check("close", status);
  TF_DeleteSession(session, status);
  check("delete", status);
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  return 0;
}
